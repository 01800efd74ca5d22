"""The PyTorch twin as an exported program with its preprocessing, for .pt2 and ONNX files."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vit_core.checkpoints import Checkpoint
from vit_core.deployment import DESCRIPTION, Deployment
from vit_core.errors import InputError, shortened
from vit_core.preprocess import offset_and_scale
from vit_core.traced_pixels import resized_pixels
from vit_torch import arrays
from vit_torch.checkpoint import load
from vit_torch.model import ViT


class Deployed(nn.Module):
    """Images, as a deployment describes its input, to float32 logits."""

    offset: Tensor
    scale: Tensor

    def __init__(self, model: ViT, deployment: Deployment) -> None:
        super().__init__()
        self.model, self.deployment = model, deployment
        offset, scale = offset_and_scale(deployment.preprocessing)
        self.register_buffer("offset", arrays.from_numpy(offset))
        self.register_buffer("scale", arrays.from_numpy(scale))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        if self.deployment.input == "normalised":
            x_BCHW = images
        else:
            if self.deployment.input == "image":
                images = resized_pixels(images.to(torch.float64), self.deployment.preprocessing, torch)
            x_BCHW = ((images.to(torch.float32) - self.offset) * self.scale).permute(0, 3, 1, 2)
        output_BL: Tensor = self.model(x_BCHW, interpolate=self.deployment.any_size)
        return output_BL.to(torch.float32)


def traced_program(checkpoint: Checkpoint, deployment: Deployment) -> ExportedProgram:
    """The checkpoint's model as an exported program. Raises InputError if torch cannot trace what is asked for."""
    precision = "float32" if deployment.precision == "int8" else deployment.precision
    deployed = Deployed(load(checkpoint, dtype=precision), deployment).eval()
    shape = deployment.input_shape
    patch = deployment.model.patch_size
    dims: dict[int, Any] = {} if deployment.batch else {0: Dim("batch")}
    example = [2 if isinstance(side, str) else side for side in shape]
    for axis, name in enumerate(shape):
        if name in ("height", "width"):
            step = patch[name == "width"] if deployment.any_size else 1
            # torch fixes lengths of 0 and 1 in what it traces: a side has 2 patches or more, and the examples are
            # larger, and unlike one another.
            dims[axis], example[axis] = step * Dim(name, min=2) if step > 1 else Dim(name), step * (5 + axis)
    images = torch.zeros(example, dtype=getattr(torch, str(deployment.input_type)))
    try:
        with torch.no_grad():
            return torch.export.export(deployed, (images,), dynamic_shapes={"images": dims})
    except (RuntimeError, ValueError) as error:  # UserError and what tracing symbols raises are RuntimeErrors
        raise InputError(
            f"torch.export cannot trace {list(shape)} for {deployment.target}: {shortened(str(error))}; "
            "use a fixed size and --batch N"
        ) from error


def write_torch_export(path: Path, checkpoint: Checkpoint, deployment: Deployment) -> None:
    """Writes the file that `torch.export.load` opens; the description is its extra file DESCRIPTION."""
    program = traced_program(checkpoint, deployment)
    torch.export.save(program, path, extra_files={DESCRIPTION: deployment.to_json()})


def open_torch_export(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a written file, from arrays to arrays."""
    module = torch.export.load(path).module()

    def call(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return arrays.to_numpy(module(arrays.from_numpy(images)))

    return call


def operators(path: Path) -> tuple[str, Counter[str]]:
    """The version of torch that wrote a file, and how often it calls each operator."""
    nodes = torch.export.load(path).graph.nodes
    called = Counter(getattr(node.target, "__name__", str(node.target)) for node in nodes if node.op == "call_function")
    return f"torch {torch.__version__.partition('+')[0]}", called
