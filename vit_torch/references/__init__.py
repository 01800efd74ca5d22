"""Opens a written checkpoint in the library that its format belongs to: what `vit convert` compares our model with.

One module per format, named after it, with a function `open_reference`; a format without a module has no library to
compare with. The libraries are imported when needed. Nothing is downloaded, and no code comes from a file: a folder's
config.json only chooses among the architectures that timm or transformers have registered.
"""

import contextlib
import importlib
import io
from importlib.util import find_spec
from pathlib import Path

import torch

from vit_core.config import ViTConfig
from vit_core.errors import InputError, shortened
from vit_core.parity import FLOAT32_BOUND, FLOAT64_BOUND
from vit_torch.references.interface import NotInstalled, Reference

__all__ = ["NotInstalled", "Reference", "bound_of", "reference"]

_FLOAT32_ANGLES = ("transformers", "meta")
"""The formats whose libraries (timm, for Meta's files) compute coordinates of rotary positions, or their angles too, in
float32 whatever the type of the model."""


def bound_of(format: str, model: ViTConfig) -> float:
    """Bound of the relative difference between a library's outputs and ours in float64.

    An angle in float32 is a product of rounded factors, at most 2 pi: it is off by less than 44 times 2**-24. Two such
    angles, of a query and of a key, stay below the roundings of a whole model in float32. So do the RMSNorms that
    transformers computes in float32, which are some of these roundings.
    """
    angles = format in _FLOAT32_ANGLES and model.rope is not None
    norms = format == "transformers" and model.norm == "rms_norm"
    return FLOAT32_BOUND if angles or norms else FLOAT64_BOUND


def reference(path: Path, format: str, model: ViTConfig) -> Reference | None:
    """A function from images x_BCHW in float64 to logits (features, where there is no head) by the format's library.

    model: the config of the checkpoint at `path`. None where no library has such a model, or none loads such a file.
    Raises NotInstalled where the library is missing, InputError where it does not open the checkpoint.
    """
    if find_spec(f"vit_torch.references.{format}") is None:
        return None
    adapter = importlib.import_module(f"vit_torch.references.{format}")
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):  # initial values, progress
            opened: Reference | None = adapter.open_reference(path, model)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        library = adapter.LIBRARY
        raise NotInstalled(f"to compare with {library}, {error.name} is missing: pip install {library}") from None
    except Exception as error:  # each library raises its own errors for what it cannot open
        reason = shortened(str(error)) or type(error).__name__
        raise InputError(f"{path}: {adapter.LIBRARY} itself does not open it ({reason})") from None
    if opened is None:
        return None
    model_of_library = opened
    return torch.no_grad()(lambda x_BCHW: model_of_library(x_BCHW.double()))
