"""Meta's DINOv3 .pth files, read and written, against an independent class with their names (and Meta's own where it is
installed) and timm's Eva with timm's loader. The bound is parity.FLOAT64_BOUND."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vit_jax
import vit_torch
from parity_tests.formats.foreign import assert_same_bits, assumed, nchw, opened, randomized
from parity_tests.formats.meta_dinov3_reference import classes, tokens_of
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, open_checkpoint, parity
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.formats.meta_dinov3 import arguments, opened_by
from vit_core.checkpoints.saving import express_for
from vit_core.errors import InputError
from vit_core.rope import Rope
from vit_torch.references import bound_of, reference

SMALL = ViTConfig(
    image_size=56, patch_size=4, width=64, depth=2, heads=2, mlp_dim=96, num_classes=0, activation="gelu",
    norm_epsilon=1e-5, rope={"rescale": 2.0, "periods": "bfloat16"}, position_embedding="none", registers=4,
    layer_scale=1.0, key_bias=False,
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "S, B, L": {},
    "S+, H+": {"mlp": "swiglu"},
    "7B": {"mlp": "swiglu", "qkv_bias": False, "key_bias": True},
    "float32 periods": {"rope": {"rescale": 2.0, "periods": "float32"}},
    "another base": {"rope": {"rescale": 2.0, "periods": "float32", "base": 37.5}},
    "key bias, no registers, no LayerScale": {"key_bias": True, "registers": 0, "layer_scale": None},
    "RMSNorm": {"norm": "rms_norm"},
    "no biases": {"proj_bias": False},
    "a linear head": {"num_classes": 5, "pooling": "cls_gap"},
}
SIZES = [(56, 56), (128, 128), (56, 84), (28, 52)]
"""Of which the last has 7 x 13 patches."""


def theirs_of(name: str, state: dict[str, torch.Tensor], model: ViTConfig) -> Any:
    """Their class with a state dict, every name of which must be there."""
    built = classes()[name](**arguments(model)).double().eval()
    built.load_state_dict(state, strict=True)
    return built


def state_of(path: Path) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return {name.removeprefix("backbone."): x for name, x in stored.items() if not name.startswith("linear_head.")}


def written(folder: Path, model: ViTConfig) -> Path:
    save_checkpoint(folder / "dinov3.pth", checkpoint(model), format="meta")
    return folder / "dinov3.pth"


@pytest.mark.parametrize("who", classes())
@pytest.mark.parametrize("name", MODELS)
def test_written_and_read_again(name: str, who: str, tmp_path: Path) -> None:
    """Ours -> theirs, strictly, tokens of every block -> ours, no bit changed."""
    model = SMALL.replace(**MODELS[name])
    weights = checkpoint(model)
    path = written(tmp_path, model)
    theirs = theirs_of(who, state_of(path), model)
    x_BHWC, _ = parity.probe(model, 1)
    twin = vit_torch.load(weights, dtype="float64")
    with torch.no_grad():
        expected = tokens_of(theirs, nchw(x_BHWC))
        stages = twin.forward_intermediates(nchw(x_BHWC))
    # Meta's RMSNorm computes in float32 whatever the type of its model.
    in_float32 = who == "Meta's" and model.norm == "rms_norm"
    bound = parity.FLOAT32_BOUND if in_float32 else parity.FLOAT64_BOUND
    for stage, x in zip([*(f"blocks.{i}" for i in range(2)), "norm"], expected, strict=True):
        assert parity.difference(stages[stage].numpy(), x.numpy())[1] <= bound, stage
    again = open_checkpoint(path)
    assert again.format == "meta"
    assert again.config.model == model
    assert_same_bits(again.arrays, weights.arrays)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("normalize", ["separate", "min", "max"])
def test_resolutions(size: tuple[int, int], normalize: str, tmp_path: Path) -> None:
    """At run time, in both twins, by each way to normalize coordinates."""
    model = SMALL.replace(depth=1, rope={"normalize": normalize, "periods": "bfloat16"})
    theirs = theirs_of("reference", state_of(written(tmp_path, model)), model)
    x_BHWC, _ = parity.probe(model, 1, image_size=size)
    with torch.no_grad():
        expected = tokens_of(theirs, nchw(x_BHWC))[-1][:, 0].numpy()
    weights = checkpoint(model)
    twins = [vit_torch.predict(vit_torch.load(weights, dtype="float64"), x_BHWC, interpolate=True)]
    if size == SIZES[-1]:
        twins.append(vit_jax.predict(vit_jax.load(weights, dtype="float64"), x_BHWC, interpolate=True))
    for found in twins:
        assert parity.difference(found, expected)[1] <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("name", ["S, B, L", "S+, H+", "key bias, no registers, no LayerScale"])
def test_gradients(name: str, tmp_path: Path) -> None:
    """Of every parameter; those of a bias that a mask covers are zero there, and have no counterpart here."""
    model = SMALL.replace(**MODELS[name])
    theirs = theirs_of("reference", state_of(written(tmp_path, model)), model)
    x_BHWC, probe_BC = parity.probe(model, 1)
    (tokens_of(theirs, nchw(x_BHWC))[-1][:, 0] * torch.from_numpy(probe_BC)).sum().backward()
    theirs.mask_token.grad = torch.zeros_like(theirs.mask_token)
    state = {**theirs.state_dict(), **{key: x.grad for key, x in theirs.named_parameters()}}
    torch.save(state, tmp_path / "gradients.pth")
    expected = open_checkpoint(tmp_path / "gradients.pth").arrays
    found = vit_torch.trace(vit_torch.load(checkpoint(model), dtype="float64"), x_BHWC, probe_BC)
    assert {f"grad.{key}" for key in expected} == {key for key in found if key.startswith("grad.")}
    for key in expected:
        assert parity.difference(found[f"grad.{key}"], expected[key])[1] <= parity.FLOAT64_BOUND, key


@pytest.mark.parametrize("name", ["S, B, L", "S+, H+", "7B", "float32 periods", "a linear head"])
def test_timm_opens_it(name: str, tmp_path: Path) -> None:
    """timm computes coordinates, but not their angles, in float32 whatever the type of the model."""
    model = SMALL.replace(**MODELS[name])
    path = written(tmp_path, model)
    theirs = reference(path, "meta", model)
    assert theirs is not None
    x_BHWC, _ = parity.probe(model, 1)
    ours = vit_torch.predict(vit_torch.load(checkpoint(model), dtype="float64"), x_BHWC)
    assert 0 < parity.difference(theirs(nchw(x_BHWC)).numpy(), ours)[1] <= bound_of("meta", model) == 1e-5


def test_as_released(tmp_path: Path) -> None:
    """Values that no output needs are left out, and fields that no array shows are assumed and reported."""
    state = state_of(written(tmp_path, SMALL))
    for i in range(2):
        state[f"blocks.{i}.attn.qkv.bias"][64:128] = torch.nan  # which the mask covers
        state[f"blocks.{i}.attn.qkv.bias_mask"][64:128] = 0.0
    state |= {"local_cls_norm.weight": torch.ones(64), "local_cls_norm.bias": torch.ones(64)}
    torch.save(state, tmp_path / "released.pth")
    read = open_checkpoint(tmp_path / "released.pth")
    assert read.config.model == SMALL
    assert_same_bits(read.arrays, checkpoint(SMALL).arrays)
    assert assumed(read) == {
        "image_size": (56, 56), "activation": "gelu", "norm_epsilon": 1e-5, "pooling": "cls",
        "rope": Rope(rescale=2.0, periods="bfloat16"),
    }  # fmt: skip
    assert read.notes[-1].endswith("rope_embed.periods, mask_token, local_cls_norm.weight, local_cls_norm.bias")


def test_under_a_training_scripts_key(tmp_path: Path) -> None:
    state = {f"backbone.{name}": x for name, x in state_of(written(tmp_path, SMALL)).items()}
    torch.save({"teacher": state}, tmp_path / "teacher.pth")
    assert open_checkpoint(tmp_path / "teacher.pth").config.model == SMALL


def test_float64_periods_are_rounded(tmp_path: Path) -> None:
    """transformers' and timm's DINOv3 have exact values, which float32 rounds by 2**-25."""
    weights = checkpoint(SMALL.replace(rope="dinov3"))
    notes = save_checkpoint(tmp_path / "dinov3.pth", weights, format="meta")
    assert "rope.periods: rounded to float32" in notes
    assert express_for(weights, "meta").bound == parity.FLOAT32_BOUND
    x_BHWC, _ = parity.probe(SMALL, 1)
    before, after = (
        vit_torch.predict(vit_torch.load(one, dtype="float64"), x_BHWC)
        for one in (weights, open_checkpoint(tmp_path / "dinov3.pth"))
    )
    assert 0 < parity.difference(after, before)[1] <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_periods_as_meta_computes_them(head_dim: int, dtype: torch.dtype) -> None:
    """In the type itself, by torch: bfloat16 for training, float32 in its hub."""
    from vit_core.checkpoints.formats.meta_dinov3 import rope_of

    periods = 100.0 ** (2 * torch.arange(head_dim // 4, dtype=dtype) / (head_dim // 2))
    found = rope_of(periods.float().numpy(), str(dtype).removeprefix("torch."), "file")
    assert found == Rope(periods=str(dtype).removeprefix("torch."))


CHANGES: dict[str, tuple[Any, str]] = {
    "other periods": (
        lambda s: {**s, "rope_embed.periods": torch.linspace(1, 2, 8)},
        "rope_embed.periods .* are not powers",
    ),
    "negative periods": (lambda s: {**s, "rope_embed.periods": -torch.ones(8)}, "rope_embed.periods .* are not powers"),
    "too many periods": (
        lambda s: {**s, "rope_embed.periods": torch.ones(12)},
        "12 values, for heads of 48, but 64 is not a multiple of it",
    ),
    "a mask in one block only": (
        lambda s: {name: x for name, x in s.items() if name != "blocks.1.attn.qkv.bias_mask"},
        "attn.qkv.bias_mask is neither 1 for all",
    ),
    "a mask over queries": (
        lambda s: {**s, "blocks.0.attn.qkv.bias_mask": torch.zeros(192)},
        "attn.qkv.bias_mask is neither 1 for all",
    ),
    "another norm for the class token": (
        lambda s: {**s, "cls_norm.weight": torch.ones(64), "cls_norm.bias": torch.ones(64)},
        "cls_norm.weight.*untie_cls_and_patch_norms",
    ),
    "a missing gate": (
        lambda s: {name: x for name, x in s.items() if name != "blocks.1.mlp.fc2.weight"},
        r"missing blocks.1.mlp.fc2.weight \[64, 96\]",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_cannot_be_expressed_is_refused(what: str, tmp_path: Path) -> None:
    change, reason = CHANGES[what]
    torch.save(change(state_of(written(tmp_path, SMALL))), tmp_path / "changed.pth")
    with pytest.raises(InputError, match=reason) as error:
        open_checkpoint(tmp_path / "changed.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope": "eva02"}, "rope.coordinates grid (it has centered), rope.reference"),
        ({"rope": {"offset": 0.5, "periods": "float32"}}, "rope.offset 0.5 (it has 0.0)"),
        ({"patch_size": (4, 2)}, "patch_size 4x2; DINOv3's code has only square patches"),
        ({"mlp": "swiglu", "mlp_dim": 36}, "mlp_dim 36; DINOv3's gated MLPs need a multiple of 8"),
        ({"norm_epsilon": 1e-3}, "norm_epsilon 0.001 (it has 1e-05 or 1e-06)"),
        ({"qk_norm": True}, "qk_norm true (it has false)"),
        ({"position_embedding": "learned"}, "position_embedding learned (it has none)"),
    ],
    ids=str,
)
def test_what_their_class_does_not_compute_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as error:
        express_for(checkpoint(SMALL.replace(**fields)), "meta")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_entry_of_the_hub_is_named() -> None:
    seven = {"width": 4096, "depth": 40, "heads": 32, "mlp_dim": 8192, "mlp": "swiglu", "qkv_bias": False}
    model = SMALL.replace(image_size=224, patch_size=16, key_bias=True, **seven)
    assert "(torch.hub: dinov3_vit7b16, pretrained=False)" in opened_by(model)
    hidden = int(4096 * arguments(model)["ffn_ratio"])
    assert (int(hidden * 2 / 3) + 7) // 8 * 8 == 8192


def test_the_reference_is_random_enough(tmp_path: Path) -> None:
    """Every parameter and the periods change its outputs."""
    model = SMALL.replace(depth=1)
    theirs = randomized(theirs_of("reference", state_of(written(tmp_path, model)), model))
    for i in range(1):
        theirs.get_submodule(f"blocks.{i}.attn.qkv").bias_mask.copy_(torch.ones(192))
    x_BCHW = nchw(parity.probe(model, 1)[0])
    out = tokens_of(theirs, x_BCHW)[-1].detach()
    for name, x in [*theirs.named_parameters(), ("rope_embed.periods", theirs.rope_embed.periods)]:
        if name == "mask_token":
            continue
        before = x.detach().clone()
        with torch.no_grad():
            x.mul_(1.1)
            assert not np.array_equal(tokens_of(theirs, x_BCHW)[-1], out), name
            x.copy_(before)


def test_heads_follow_the_periods(tmp_path: Path) -> None:
    assert opened(written(tmp_path, SMALL.replace(heads=4))).config.model.heads == 4
