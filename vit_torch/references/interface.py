"""What the adapters in this package share: their result, loading a state dict, pooling tokens, float64 throughout."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vit_core.config import ViTConfig
from vit_core.errors import InputError

Reference = Callable[[Tensor], Tensor]
"""Images x_BCHW -> outputs."""


class NotInstalled(InputError):
    """The library that a format belongs to is not installed."""


class _Float64(ModuleType):
    """torch, except that its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64(*modules: ModuleType) -> Iterator[None]:
    """Within it, code of a library that names float32 computes in float64: `torch.float32` in these modules, and
    `x.float()` of any tensor."""
    with ExitStack() as patched:
        patched.enter_context(patch.object(Tensor, "float", Tensor.double))
        for module in modules:
            patched.enter_context(patch.object(module, "torch", _Float64("torch")))
        yield


def load_state_dict(path: Path, build: Callable[[], Any], prefix: str = "") -> Any:
    """A library's module in float64 with the state dict of a file, whose names have a prefix that the module's lack;
    every name must match."""
    if path.suffix == ".safetensors":
        state = importlib.import_module("safetensors.torch").load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        module = build()
    state = {name.removeprefix(prefix): x for name, x in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.double().eval()


def pool_tokens(x_BND: Tensor, model: ViTConfig) -> Tensor:
    """The features that pooling by class token, mean, or both takes from a model's token outputs."""
    mean_BD = x_BND[:, model.prefix_tokens :].mean(dim=1)
    return {"cls": x_BND[:, 0], "gap": mean_BD, "cls_gap": torch.cat([x_BND[:, 0], mean_BD], dim=1)}[model.pooling]
