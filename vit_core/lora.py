"""Low-rank adapters (LoRA): their config, their rows of the parameter table, and how they are merged into weights.

W x becomes W x + (alpha / rank) B A x, where W is not trained, and A and B are (Hu et al. 2021, arXiv:2106.09685,
section 4.1). A is initialized uniformly in +-1 / sqrt(inputs) and B with zeros, as in the paper's own library and in
peft, so new adapters do not change a model's outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from vit_core.config import ViTConfig
from vit_core.parameters import Initializer, Parameter, groups_of, parameters
from vit_core.schema import Count, Flag, Real, Schema

Target = Literal["qkv", "proj", "fc1", "fc2"]
ADAPTERS_BESIDE = "the model has adapters, which are no part of its weights; vit_core.lora.merged_arrays makes them one"
"""Why such a model is not saved as a checkpoint."""
TARGETS: dict[Target, str] = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""Layers of a block that may have adapters -> their names in the block."""


class Lora(Schema):
    """Low-rank adapters of the blocks' linear layers (arXiv:2106.09685): (alpha / rank) B A x is added to W x.

    Only adapters and heads are trained. All other parameters are unchanged, and have no optimizer state.
    """

    rank: Count = 0
    """Rank of A (rank x inputs) and B (outputs x rank); 0: no adapters, and every parameter is trained."""
    alpha: Annotated[Real, Field(gt=0.0)] = 16.0
    """The output of the adapter is multiplied by alpha / rank."""
    root: Flag = False
    """Divide alpha by the square root of the rank instead (rsLoRA, arXiv:2312.03732; peft's use_rslora)."""
    targets: tuple[Target, ...] = ("qkv", "proj")
    """The layers of every block that have adapters: queries, keys and values together; the attention's projection; the
    layers of the MLP."""

    @model_validator(mode="after")
    def _has_targets(self) -> "Lora":
        if self.rank and not self.targets:
            raise ValueError("targets: none leaves nothing to adapt; expected some of qkv, proj, fc1, fc2")
        return self

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return self.alpha / (sqrt(self.rank) if self.root else max(self.rank, 1))


@dataclass(frozen=True)
class Pair:
    """The adapter of one weight."""

    down: str
    """Canonical name of A: rank x inputs."""
    up: str
    """Canonical name of B: outputs x rank."""


@lru_cache(maxsize=64)
def adapters(model: ViTConfig, lora: Lora) -> Mapping[str, Pair]:
    """Canonical name of each weight that has an adapter -> the names of the adapter's two matrices."""
    modules = {f"blocks.{i}.{TARGETS[target]}" for i in range(model.depth) for target in lora.targets if lora.rank}
    weights = [name for name in parameters(model) if name.removesuffix(".weight") in modules]
    return MappingProxyType({name: pair_of(name.removesuffix(".weight")) for name in weights})


def pair_of(module: str) -> Pair:
    """The names of the two matrices of a layer's adapter, which are peft's."""
    return Pair(f"{module}.lora_A.weight", f"{module}.lora_B.weight")


@lru_cache(maxsize=64)
def adapter_rows(model: ViTConfig, lora: Lora) -> Mapping[str, Parameter]:
    """The rows of the adapters' matrices, which the parameter table does not contain: canonical name -> row."""
    rows: dict[str, Parameter] = {}
    for name, pair in adapters(model, lora).items():
        rows |= {row.name: row for row in _rows_of(parameters(model)[name], pair, lora.rank)}
    return MappingProxyType(rows)


def with_adapter_rows(rows: Mapping[str, Parameter], model: ViTConfig, lora: Lora) -> Mapping[str, Parameter]:
    """The parameter table of a model followed by the rows of its adapters."""
    return {**rows, **adapter_rows(model, lora)} if lora.rank else rows


def trained_with(lora: Lora, name: str) -> bool:
    """Whether a parameter is trained: with adapters, only the adapters and the heads are."""
    return not lora.rank or is_adapter(name) or name.startswith(("head.", "head_dist."))


def is_adapter(name: str) -> bool:
    """Whether a canonical name is that of an adapter's matrix."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def merged(weight: np.ndarray, down: np.ndarray, up: np.ndarray, scale: float) -> np.ndarray:
    """The weight with its adapter merged: W + scale B A, in the layout on disk and in the weight's type.

    Computed in float64 and rounded once.
    """
    product = up.astype(np.float64) @ down.astype(np.float64)
    return (weight.astype(np.float64) + scale * product).astype(weight.dtype)


def merged_arrays(arrays: Mapping[str, np.ndarray], model: ViTConfig, lora: Lora) -> dict[str, np.ndarray]:
    """Canonical name -> array of a model with its adapters merged into its weights.

    arrays: those of the model and of its adapters.
    """
    pairs = adapters(model, lora)
    return {
        name: merged(arrays[name], arrays[pairs[name].down], arrays[pairs[name].up], lora.scale)
        if name in pairs
        else arrays[name]
        for name in parameters(model)
    }


def _rows_of(weight: Parameter, pair: Pair, rank: int) -> tuple[Parameter, Parameter]:
    """The rows of A and B of a weight, whose layouts follow from the weight's."""
    (out, into), sizes = list(groups_of(weight.torch)), {**weight.sizes, "rank": rank}

    def row(name: str, torch: list[list[str]], initializer: Initializer) -> Parameter:
        layout = " ".join(f"({' '.join(group)})" if len(group) > 1 else group[0] for group in torch)
        jax = [axis for group in reversed(torch) for axis in group]
        return Parameter(
            name=name,
            torch=layout,
            jax_name=name.removesuffix(".weight"),
            jax=" ".join(jax),
            sizes={axis: sizes[axis] for axis in jax},
            initializer=initializer,
            matrix=layout,
            decay=True,
            depth=weight.depth,
            layer=weight.layer,
            key_bias=None,
        )

    inputs = prod(weight.sizes[axis] for axis in into)
    return (
        row(pair.down, [["rank"], into], Initializer("uniform", 1 / sqrt(inputs))),
        row(pair.up, [out, ["rank"]], Initializer("constant", 0.0)),
    )
