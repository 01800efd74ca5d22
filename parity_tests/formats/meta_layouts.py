"""Files in the layout of DINO, DINOv2, MAE and DeiT, made here name by name from their code.

Nothing of Meta's is on an index, so the layouts are spelled out: what each project's modules call their parameters, and
what its scripts put around them. timm's VisionTransformer reads them with its own loader (checkpoint_filter_fn).
"""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from parity_tests.formats.torch_models import randomised

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
HEADS = {"heads": 3}
HEAD = {"head.weight": (5, 24), "head.bias": (5,)}
State = dict[str, Tensor]


def layout(
    width: int,
    depth: int,
    mlp_dim: int,
    patch: int,
    positions: int,
    *,
    registers: int = 0,
    swiglu: bool = False,
    scale: bool = False,
    chunks: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a backbone by Meta's code: DINO's and MAE's without the options, which are DINOv2's."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, positions, width)}
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for layer in range(depth):
        block = f"blocks.{layer // (depth // chunks)}.{layer}." if chunks else f"blocks.{layer}."
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if swiglu:
            linears |= {"mlp.w12": (2 * mlp_dim, width), "mlp.w3": (width, mlp_dim)}
        else:
            linears |= {"mlp.fc1": (mlp_dim, width), "mlp.fc2": (width, mlp_dim)}
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
        if scale:
            shapes |= {f"{block}{name}.gamma": (width,) for name in ("ls1", "ls2")}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def filled(shapes: dict[str, tuple[int, ...]]) -> State:
    """Random, as parity_tests.formats.torch_models fills models."""
    holder = nn.Module()
    for name, shape in shapes.items():
        holder.register_parameter(name.replace(".", "/"), nn.Parameter(torch.empty(shape)))
    randomised(holder)
    return {name.replace("/", "."): parameter.data for name, parameter in holder.named_parameters()}


def dinov2(**options: Any) -> State:
    """The released file: the backbone, and a mask token with two axes."""
    state = filled(layout(24, 2, 40, 4, 10, scale=True, **options))
    return {**state, "mask_token": torch.ones(1, 24)}


def unchunked(state: State) -> State:
    """Blocks counted once, as timm does."""
    return {".".join([*n.split(".")[:1], *n.split(".")[2:]]) if n[:7] == "blocks." else n: t for n, t in state.items()}


def timm_dinov2(state: State, **options: Any) -> VisionTransformer:
    """timm's model with timm's own loader for these files, strict."""
    architecture = "vit_giant_patch14_dinov2" if options.pop("swiglu", False) else "vit_base_patch14_dinov2"
    options = {**TINY, "mlp_ratio": 40 / 24, "num_classes": 0, **options}
    model = timm.create_model(architecture, **options)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model), strict=True)
    return model.eval()


def in_file(path: Path, saved: object) -> Path:
    torch.save(saved, path)
    return path


def backbone(**more: tuple[int, ...]) -> State:
    """DINO's, MAE's and DeiT's names."""
    return filled({**layout(24, 2, 40, 4, 10), **more})


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
