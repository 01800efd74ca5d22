"""Every Vision Transformer of timm as a bare state dict: it computes the same here, or it is refused in one line.

All architectures with a patch projection are built small, with random values in float64. What no array shows (heads,
epsilon, activation, pooling) is given as the model has it, so that only what ViTConfig cannot express is left.
"""

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import GluMlp, RmsNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

import vit_torch
from parity_tests.formats.foreign import images, largest_difference, nchw, randomized, save
from parity_tests.formats.timm_models import with_googles_epsilons
from parity_tests.formats.torch_models import hollow
from vit_core import parity
from vit_core.arrays import LazyArray
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.containers import Container
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.opening import find_source, read_source, recognized_format
from vit_core.errors import InputError

ARCHITECTURES = re.compile(r"(vit|eva|beit|deit|flexivit|test_vit|cait|aim|samvit|deepseek_vit|qwen3_vit)(?!amin)")
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
POOLING = {"token": "cls", "avg": "gap", "map": "map"}
DIFFERENT = ("vit_pe_core_base_patch16_224", "vit_base_patch16_rpn_224", "test_vit3")
"""Architectures with the arrays of a plain one that compute something else."""


@cache
def built(architecture: str) -> Any:
    """A small one; None where it does not let its sizes be set."""
    for size in ({"img_size": 56 if "patch14" in architecture else 64}, {}):
        try:
            options: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 5, **size}
            return randomized(timm.create_model(architecture, **options))
        except Exception:  # each has its own reasons
            continue
    return None


def distinct() -> list[str]:
    """One architecture for each that is different beyond its sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen: dict[Any, str] = {}
        for name in timm.list_models():
            if not ARCHITECTURES.match(name) or "deepseek" in name or "qwen" in name or (model := built(name)) is None:
                continue
            options = [getattr(model, key, None) for key in ("global_pool", "pool_include_prefix", "no_embed_class")]
            seen.setdefault((type(model).__name__, repr(model), *map(str, options)), name)
    return list(seen.values())


def opened(model: Any, fields: dict[str, Any]) -> Checkpoint:
    """The bare state dict of a model."""
    tree = {name: LazyArray.of(x.numpy()) for name, x in model.state_dict().items()}
    container = Container(Path("model.pth"), "pth", tree)
    source = find_source(container, None, Source(Path("model.pth"), container.arrays))
    return read_source(recognized_format(source), source, fields)


def fields_of(model: Any, found: Checkpoint) -> dict[str, Any]:
    """The fields that no array of a model shows."""
    fields: dict[str, Any] = {"heads": 2}
    fields["norm_epsilon"] = max(x.eps for x in model.modules() if isinstance(x, nn.LayerNorm | RmsNorm))
    if found.config.model.mlp == "mlp":
        layers = (type(one).__name__ for one in model.blocks[0].modules())
        fields["activation"] = next(ACTIVATIONS[name] for name in layers if name in ACTIVATIONS)
    if found.config.model.distillation == "none" and model.global_pool:
        fields["pooling"] = POOLING[model.global_pool]
    return fields


@pytest.mark.release
def test_each_computes_the_same_or_is_refused() -> None:
    opens, refused, wrong = list[str](), list[str](), list[str]()
    for name in distinct():
        model = built(name)
        try:
            found = opened(model, {"heads": 2})
            found = opened(model, fields_of(model, found))
        except InputError:
            refused.append(name)
            continue
        x_BCHW = torch.from_numpy(parity.probe(found.config.model, 1)[0]).permute(0, 3, 1, 2)
        if found.config.model.stem_layers is not None:
            model = with_googles_epsilons(model)
        with torch.no_grad():
            expected: np.ndarray = model(x_BCHW).numpy()
            ours = vit_torch.load(found, dtype="float64")(x_BCHW).numpy()
        (opens if parity.difference(ours, expected)[1] <= parity.FLOAT64_BOUND else wrong).append(name)
    assert wrong == []
    assert len(opens) > 25
    assert len(refused) > 25
    assert set(DIFFERENT) <= set(refused)
    assert {"deit_base_patch16_224", "vit_base_patch16_siglip_224", "vit_so150m_patch16_reg4_map_256"} <= set(opens)


@pytest.mark.parametrize("name", DIFFERENT)
def test_lookalikes_open_when_they_are_said_to_be_plain(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", built(name).state_dict())
    with pytest.raises(
        InputError,
        match=r"computes other outputs from the same arrays; use --from timm (--set rope=pe|if it is a plain)",
    ):
        open_checkpoint(path)
    assert open_checkpoint(path, format="timm", fields={"heads": 2}).format == "timm"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch16_dinov3", "no array shows its rotary positions"),
        ("vit_base_patch16_rope_ape_224", "those of DeiT III and of rotary ViTs"),
        ("vit_pe_spatial_base_patch16_512", "the Perception Encoder .*use --set rope=pe --set final_norm=none for it"),
        ("samvit_base_patch16", "relative positions, as in Swin and SAM, which ViTConfig cannot express"),
    ],
)
def test_the_reason_names_the_positions(name: str, reason: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", built(name).state_dict())
    with pytest.raises(InputError, match=reason):
        open_checkpoint(path)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_first_small_one_of_timm_scales_otherwise(prefix: str, tmp_path: Path) -> None:
    """vit_small_patch16_224 of timm 0.3 and of PaddleClas: 8 heads of 96, and products times 768 ** -0.5."""
    sizes: dict[str, Any] = {"depth": 8, "num_heads": 8, "mlp_ratio": 3.0, "qkv_bias": False, "num_classes": 5}
    model = timm.create_model("vit_base_patch16_224", **sizes)
    shapes = {f"{prefix}{name}": tuple(x.shape) for name, x in model.state_dict().items()}
    path = hollow(tmp_path / "vit_small_p16_224.safetensors", shapes)
    with pytest.raises(InputError, match=r"8 blocks of width 768 .* --from timm --set heads=") as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    assert open_checkpoint(path, format="timm", fields={"heads": 8}).config.model.heads == 8


def test_the_same_sizes_with_a_bias_are_another_network(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depth": 8, "num_heads": 12, "mlp_ratio": 3.0, "num_classes": 5}
    model = timm.create_model("vit_base_patch16_224", **sizes)
    path = hollow(tmp_path / "own.safetensors", {name: tuple(x.shape) for name, x in model.state_dict().items()})
    assert open_checkpoint(path, fields={"heads": 12}).config.model.heads == 12


OF_SAME_ARRAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "norms after the branches": ({"block_fn": ResPostBlock}, {"branch_norm": "after"}),
    "mean with the class token": ({"global_pool": "avg", "pool_include_prefix": True}, {"pool_prefix": True}),
    "attention with the class token": ({"global_pool": "map", "pool_include_prefix": True}, {"pool_prefix": True}),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", OF_SAME_ARRAYS)
def test_an_argument_that_changes_no_array_is_assumed_or_read(case: str, pickled: bool, tmp_path: Path) -> None:
    options, fields = OF_SAME_ARRAYS[case]
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1, "num_classes": 5}
    model = randomized(VisionTransformer(**sizes, **options))
    torch.save(model if pickled else model.state_dict(), tmp_path / "x.pth")
    found = open_checkpoint(tmp_path / "x.pth", fields={} if pickled else fields)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assumed_fields = {one.field for one in open_checkpoint(tmp_path / "x.pth").assumptions}
    assert (assumed_fields >= fields.keys()) == (not pickled)


def test_the_activation_of_a_gate_is_assumed(tmp_path: Path) -> None:
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1, "num_classes": 5}
    model = VisionTransformer(**sizes, mlp_layer=GluMlp, act_layer=nn.GELU)
    found = open_checkpoint(save(tmp_path / "x.pth", model.state_dict()))
    (note,) = [str(one) for one in found.assumptions if one.field == "mlp"]
    assert note == (
        "mlp: swiglu, with SiLU in the first half, as in SwiGLU, not timm's GluMlp or another gate; "
        "ViTConfig has no other gate"
    )
