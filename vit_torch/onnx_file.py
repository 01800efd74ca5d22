"""The PyTorch twin as an ONNX file: writing it, quantizing it, running it in onnxruntime."""

import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vit_core.checkpoints import Checkpoint
from vit_core.deployment import Deployment
from vit_core.errors import InputError, shortened
from vit_torch.deployed import traced_program

OPSET = 20
"""The first opset with Gelu; all other operators need older ones."""
EMBEDDED_BYTES = 2**31 - 2**27
"""Weights with more bytes are in a file beside the ONNX file, because protobuf is limited to 2 GiB."""
METADATA = ("labels", "probabilities", "preprocessing", "provenance", "model", "program")
"""Fields of the description that are entries of the file's metadata, as JSON."""


def data_name(path: Path) -> str:
    """Name of the file with the weights, beside an ONNX file that cannot hold them."""
    return f"{path.name}.data"


def write_onnx(
    path: Path, checkpoint: Checkpoint, deployment: Deployment, *, opset: int = OPSET, external: bool = False
) -> None:
    """Writes an ONNX file of float32, float16 or int8 weights; external: write the weights to a separate file.

    Labels, the kind of probabilities, preprocessing, provenance, model and the shapes of input and output are in its
    metadata, as JSON. InputError if ONNX has no operator for an operation.
    """
    program = traced_program(checkpoint, deployment)
    try:
        with warnings.catch_warnings(action="ignore"), _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=[deployment.output],
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise InputError(f"ONNX opset {opset} cannot express this model: {shortened(str(error))}") from error
    assert made is not None
    description = json.loads(deployment.to_json())
    made.model.producer_name = "vit-parity"
    made.model.metadata_props.update({name: json.dumps(description[name]) for name in METADATA})
    if deployment.precision != "int8":
        made.save(path, external_data=external)
        return
    whole = path.with_name(f"float32-{path.name}")
    try:
        made.save(whole, external_data=external)
        quantize(whole, path)
    finally:
        whole.unlink(missing_ok=True)
        whole.with_name(data_name(whole)).unlink(missing_ok=True)


def quantize(whole: Path, path: Path) -> None:
    """Writes an ONNX file whose matrix products with weights are in 8 bits: weights for each output channel, the other
    factor by its range in each batch (onnxruntime's dynamic quantization)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            whole, path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
        )


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a written file, in onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda images: session.run(None, {name: images})[0]


def operators(path: Path) -> tuple[int, Counter[str]]:
    """The opset of a written file, and how often it uses each operator."""
    model = onnx.load(path, load_external_data=False)
    (opset,) = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return opset, Counter(node.op_type for node in model.graph.node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, torch's exporter and onnxruntime's quantizer print and log nothing: the root logger's advice to
    preprocess, and progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
