"""The files of an exported program: their names, and how they are written and run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_cli.requirements import TWINS, require
from vit_core.checkpoints import Checkpoint
from vit_core.deployment import SUFFIXES, Deployment, Target
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.storage import Location

Runner = Callable[[np.ndarray], np.ndarray]
"""Function that runs a program: input in the layout of its deployment -> float32 [B, outputs]."""


def target_of(path: Location) -> Target:
    """The target for the extension of a file's name. Raises InputError for an unknown extension."""
    if path.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({target})" for suffix, target in SUFFIXES.items())
        raise InputError(f"{path}: no target has this extension; use --to, or one of {known}")
    return SUFFIXES[path.suffix]


def require_packages(target: Target) -> None:
    """Raises InputError, with the command that installs them, if packages that write or run a target are missing."""
    require(*(("torch", *TWINS["torch"]) if target in ("onnx", "torch-export") else ("jax", *TWINS["jax"])))
    if target == "onnx":
        require("export", "onnx", "onnxscript", "onnxruntime")
    if target == "jax-export":
        require("export", "flatbuffers")


def names_of_files(name: str, checkpoint: Checkpoint, deployment: Deployment) -> tuple[str, ...]:
    """Names of all files of a program; the given name is last. Raises InputError if the model is too large for the
    target."""
    match deployment.target:
        case "onnx":
            return (f"{name}.data", name) if _is_external(checkpoint, deployment) else (name,)
        case "torch-export":
            return (name,)
    from vit_jax.deployed import MOST_BYTES

    if (size := _bytes(checkpoint, deployment)) > MOST_BYTES:
        raise InputError(f"{deployment.target}: a file ends at 2 GiB, the weights are {size / 2**30:.1f}; use onnx")
    return (f"{name}.json", name)


def write_files(path: Path, checkpoint: Checkpoint, deployment: Deployment, opset: int | None) -> None:
    """Writes the files of a program. Raises InputError if the target does not support the model or the options."""
    if deployment.target == "onnx":
        from vit_torch.onnx_file import OPSET, write_onnx

        external = _is_external(checkpoint, deployment)
        write_onnx(path, checkpoint, deployment, opset=opset or OPSET, external=external)
    elif deployment.target == "torch-export":
        from vit_torch.deployed import write_torch_export

        write_torch_export(path, checkpoint, deployment)
    else:
        from vit_jax.deployed import write_jax_export, write_stablehlo

        write = write_jax_export if deployment.target == "jax-export" else write_stablehlo
        write(path, checkpoint, deployment)
        path.with_name(f"{path.name}.json").write_text(deployment.to_json() + "\n")


def open_file(path: Path, deployment: Deployment) -> Runner:
    """The function of a written file, in the runtime of its target."""
    match deployment.target:
        case "onnx":
            from vit_torch.onnx_file import open_onnx

            return open_onnx(path)
        case "torch-export":
            from vit_torch.deployed import open_torch_export

            return open_torch_export(path)
        case "jax-export":
            from vit_jax.deployed import open_jax_export

            return open_jax_export(path)
        case "stablehlo":
            from vit_jax.deployed import open_stablehlo

            return open_stablehlo(path, deployment)


def operators_of(path: Path, deployment: Deployment) -> tuple[str, Counter[str]]:
    """The version of a file's operators ("opset 20"), and the number of uses of each."""
    if deployment.target == "onnx":
        from vit_torch.onnx_file import operators

        opset, counts = operators(path)
        return f"opset {opset}", counts
    if deployment.target == "torch-export":
        from vit_torch.deployed import operators as torch_operators

        return torch_operators(path)
    from vit_jax.deployed import operators as jax_operators

    return jax_operators(path, deployment)


def _is_external(checkpoint: Checkpoint, deployment: Deployment) -> bool:
    from vit_torch.onnx_file import EMBEDDED_BYTES

    return _bytes(checkpoint, deployment) > EMBEDDED_BYTES


def _bytes(checkpoint: Checkpoint, deployment: Deployment) -> int:
    """Size of the weights; those of int8 are written as float32 first."""
    each = 2 if deployment.precision == "float16" else 4
    return each * sum(row.size for row in parameters(checkpoint.config.model).values())
