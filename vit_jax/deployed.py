"""The JAX twin as an exported program with its preprocessing, for .jaxexport and StableHLO files."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from vit_core.checkpoints import Checkpoint
from vit_core.deployment import Deployment
from vit_core.errors import InputError, shortened
from vit_core.preprocess import offset_and_scale
from vit_core.traced_pixels import resized_pixels
from vit_jax.checkpoint import load

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where a .jaxexport file runs."""
MOST_BYTES = 2**31 - 2**27
"""A serialized program is a flatbuffer, which ends at 2 GiB."""


def exported_program(checkpoint: Checkpoint, deployment: Deployment) -> export.Exported:
    """The checkpoint's model as an exported function of images. Raises InputError if JAX cannot trace the program."""
    model = load(checkpoint, dtype=deployment.precision)
    preprocessing = deployment.preprocessing
    offset, scale = offset_and_scale(preprocessing)

    def deployed(images: Array) -> Array:
        x_BHWC = images
        if deployment.input == "image":
            x_BHWC = resized_pixels(images.astype(jnp.float64), preprocessing, jnp)
        if deployment.input != "normalised":
            x_BHWC = (x_BHWC.astype(jnp.float32) - offset) * scale
        return model(x_BHWC, interpolate=deployment.any_size).astype(jnp.float32)

    shape, patch = deployment.input_shape, deployment.model.patch_size
    steps = {"height": f"{patch[0]}*", "width": f"{patch[1]}*"} if deployment.any_size else {}
    # float64 for whole numbers in resizing, and for the positions of any size; the model keeps its own type.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        dims = export.symbolic_shape(", ".join(f"{steps.get(str(side), '')}{side}" for side in shape))
        images = jax.ShapeDtypeStruct(dims, deployment.input_type)
        platforms = PLATFORMS if deployment.target == "jax-export" else PLATFORMS[:1]
        try:
            return export.export(jax.jit(deployed), platforms=platforms)(images)
        except (TypeError, ValueError, NotImplementedError) as error:  # for sizes that JAX cannot compare
            raise InputError(
                f"jax.export cannot trace {list(shape)}: {shortened(str(error))}; use a fixed size and --batch N"
            ) from error


def write_jax_export(path: Path, checkpoint: Checkpoint, deployment: Deployment) -> None:
    """Writes the bytes that `jax.export.deserialize` takes."""
    path.write_bytes(exported_program(checkpoint, deployment).serialize())


def open_jax_export(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a written file, from arrays to arrays."""
    program = export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(program.call(images))


def write_stablehlo(path: Path, checkpoint: Checkpoint, deployment: Deployment) -> None:
    """Writes a StableHLO module as a portable artifact; its function `main` takes images and returns logits."""
    path.write_bytes(exported_program(checkpoint, deployment).mlir_module_serialized)


def open_stablehlo(path: Path, deployment: Deployment) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a written module, which JAX compiles for this machine."""
    program = _stablehlo_program(path, deployment)
    return lambda images: np.asarray(program.call(images))


def _stablehlo_program(path: Path, deployment: Deployment) -> export.Exported:
    batch, outputs = deployment.batch, deployment.model.num_classes or deployment.model.features
    images: Any = jax.ShapeDtypeStruct(deployment.input_shape, deployment.input_type)

    def like(images: Array) -> Array:  # JAX loads a module in the place of another one, of the same input and output
        return jnp.zeros((batch, outputs), jnp.float32) + images.sum()

    program = export.export(jax.jit(like), platforms=PLATFORMS[:1])(images)
    return dataclasses.replace(program, mlir_module_serialized=path.read_bytes())


def operators(path: Path, deployment: Deployment) -> tuple[str, Counter[str]]:
    """The version of JAX that reads a file, and how often the file has each StableHLO operator."""
    if deployment.target == "jax-export":
        text = export.deserialize(bytearray(path.read_bytes())).mlir_module()
    else:
        text = _stablehlo_program(path, deployment).mlir_module()
    return f"jax {jax.__version__}", Counter(re.findall(r"\bstablehlo\.(\w+)", text))
