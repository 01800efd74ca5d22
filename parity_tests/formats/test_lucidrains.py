"""vit-pytorch's state dicts, in and out, against vit-pytorch's own models: parity.FLOAT64_BOUND unless derived."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vit_pytorch import SimpleViT, ViT, vit_with_patch_dropout
from vit_pytorch.simple_vit import posemb_sincos_2d

from parity_tests.formats.foreign import (
    SMALL,
    assert_same_bits,
    assumed,
    images,
    largest_difference,
    nchw,
    opened,
    other_notes,
    randomized,
    save,
)
from parity_tests.twins import checkpoint
from vit_core import parity
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.containers import open_container
from vit_core.checkpoints.formats import lucidrains as lineage
from vit_core.errors import InputError
from vit_core.position_embeddings import sincos2d

SIZES: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 24,
    "depth": 2,
    "heads": 3,
    "dim_head": 8,
    "mlp_dim": 40,
}
CONFIG = SMALL.replace(
    norm_epsilon=1e-5,
    qkv_bias=False,
    patch_norms=True,
)
MEAN: dict[str, Any] = {"class_token": False, "pooling": "gap"}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "cls": ({}, {"heads": 3}, {}),
    "mean": ({"pool": "mean"}, {"heads": 3}, MEAN),
    "wide heads": ({"dim_head": 16}, {"heads": 3}, {"head_dim": 16}),
    "heads of 64 values": ({"dim_head": 64}, {}, {"head_dim": 64}),
    "heads by their width": ({"dim_head": 12, "heads": 4}, {"head_dim": 12}, {"heads": 4, "head_dim": 12}),
    "one head": ({"heads": 1}, {"heads": 1}, {"heads": 1, "head_dim": 8}),
    "one channel": ({"channels": 1}, {"heads": 3}, {"channels": 1}),
    "four channels": ({"channels": 4}, {"heads": 3, "channels": 4}, {"channels": 4}),
    "not square": (
        {"image_size": (8, 12), "patch_size": (4, 2)},
        {"heads": 3, "image_size": (8, 12), "patch_size": (4, 2)},
        {"image_size": (8, 12), "patch_size": (4, 2)},
    ),
    "depth 12": ({"depth": 12}, {"heads": 3}, {"depth": 12}),
}
"""Arguments of vit-pytorch's constructor; fields that the user has to set; fields of the config that is read then."""


def theirs(**options: Any) -> Any:
    return randomized(ViT(**{**SIZES, **options}))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OPTIONS)
def test_read_and_written_back(name: str, suffix: str, tmp_path: Path) -> None:
    options, said, fields = OPTIONS[name]
    model = theirs(**options)
    path = save(tmp_path / f"theirs{suffix}", model.state_dict())
    found = opened(path, **said)
    assert found.config.model == CONFIG.replace(**fields)
    assert found.config.provenance.source_format == "lucidrains"
    assert largest_difference(found, model(nchw(images(found.config.model)))) <= parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / f"ours{suffix}", found, format="lucidrains")
    assert_same_bits(open_container(tmp_path / f"ours{suffix}").arrays, open_container(path).arrays)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.pth", theirs(pool="mean").to(dtype).state_dict())
    save_checkpoint(tmp_path / "ours.pth", opened(path, heads=3), format="lucidrains")
    assert_same_bits(open_container(tmp_path / "ours.pth").arrays, open_container(path).arrays)


def test_what_is_assumed_is_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.pth", theirs(dim_head=64, pool="mean").state_dict())
    found = opened(path)
    assert assumed(found) == {"image_size": (12, 12), "heads": 3, "patch_size": (4, 4), "channels": 3}
    assert found.notes == (
        "image_size: 12x12, for a square grid of 3x3 patches; --set image_size=HEIGHTxWIDTH for another grid",
        "heads: 3, of width 64, vit-pytorch's default; --set heads=N for another number",
        "patch_size: 4x4, square, with 3 channels; --set patch_size=VALUE for another",
        "channels: 3, for 48 values in a patch; --set channels=VALUE for another",
        "left out: cls_token",
    )
    said = opened(path, heads=3, image_size=12, patch_size=4)
    assert (said.config.model, said.notes) == (found.config.model, ("left out: cls_token",))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_jax(pool: str, tmp_path: Path) -> None:
    model = theirs(pool=pool, dim_head=16)
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    assert largest_difference(found, model(nchw(images(CONFIG))), jax=True) <= parity.FLOAT64_BOUND


def test_float32(tmp_path: Path) -> None:
    model = theirs().float()
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    expected = model(nchw(images(CONFIG), torch.float32))
    assert largest_difference(found, expected, "float32") <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_without_a_head(pool: str, tmp_path: Path) -> None:
    """vit-pytorch then gives all tokens."""
    model = theirs(num_classes=0, pool=pool)
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    assert found.config.model == CONFIG.replace(num_classes=0, **(MEAN if pool == "mean" else {}))
    x_BND = model(nchw(images(CONFIG)))
    assert largest_difference(found, x_BND[:, 0] if pool == "cls" else x_BND.mean(dim=1)) <= parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / "ours.pth", found, format="lucidrains")
    assert_same_bits(open_container(tmp_path / "ours.pth").arrays, open_container(tmp_path / "theirs.pth").arrays)


class Before1(nn.Module):
    """The forward pass of 0.10 to 1.3, whose names had the wrappers of PreNorm; patches with norms since 1.0."""

    def __init__(self, newest: Any, patch_norms: bool) -> None:
        super().__init__()
        self.newest, self.patch_norms = newest, patch_norms

    def state(self) -> dict[str, torch.Tensor]:
        """The names of then, made from those of now."""
        renamed = {
            r"layers\.(\d+)\.0\.to_": r"layers.\1.0.fn.to_",
            r"layers\.(\d+)\.1\.net\.0\.": r"layers.\1.1.norm.",
            r"layers\.(\d+)\.1\.net\.1\.": r"layers.\1.1.fn.net.0.",
            r"layers\.(\d+)\.1\.net\.4\.": r"layers.\1.1.fn.net.3.",
            r"^mlp_head\.": "mlp_head.1.",
            r"^transformer\.norm\.": "mlp_head.0.",
        }
        state = {}
        for name, tensor in self.newest.state_dict().items():
            for now, then in renamed.items():
                name = re.sub(now, then, name)
            if name in ("cls_token", "pos_embedding"):
                tensor = tensor[None]
            if not self.patch_norms and name.startswith("to_patch_embedding."):
                if ".2." not in name:
                    continue
                name = name.replace(".2.", ".1.")
            state[name] = tensor
        return state

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        m = self.newest
        rearrange, norm_in, proj, norm = m.to_patch_embedding
        x_BND = norm(proj(norm_in(rearrange(x_BCHW)))) if self.patch_norms else proj(rearrange(x_BCHW))
        x_BND = torch.cat([m.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1) + m.pos_embedding
        for attn, ff in m.transformer.layers:
            x_BND = attn(x_BND) + x_BND
            x_BND = ff(x_BND) + x_BND
        return m.mlp_head(m.transformer.norm(x_BND[:, 0]))


@pytest.mark.parametrize("patch_norms", [True, False])
def test_before_1_4(patch_norms: bool, tmp_path: Path) -> None:
    model = Before1(theirs(), patch_norms)
    found = opened(save(tmp_path / "theirs.pth", model.state()), heads=3)
    assert found.config.model == CONFIG.replace(patch_norms=patch_norms)
    assert assumed(found) == {"image_size": (12, 12), "patch_size": (4, 4), "channels": 3, "pooling": "cls"}
    assert "pool='mean' before version 1.16 has the same arrays" in found.assumptions[-1].why
    assert other_notes(found) == ()
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    if patch_norms:
        save_checkpoint(tmp_path / "ours.pth", found, format="lucidrains")
        newest = ViT(**SIZES).double().eval()
        newest.load_state_dict(torch.load(tmp_path / "ours.pth"), strict=True)
        assert largest_difference(found, newest(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_before_1_4_without_a_head(tmp_path: Path) -> None:
    """mlp_head[1] = Identity: only the norm is left."""
    model = Before1(theirs(), True)
    state = {name: x for name, x in model.state().items() if not name.startswith("mlp_head.1.")}
    assert opened(save(tmp_path / "theirs.pth", state), heads=3).config.model == CONFIG.replace(num_classes=0)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_positions_with_a_batch_axis(pool: str, tmp_path: Path) -> None:
    """1.4 to 1.16.0; of pool="mean" the last of them."""
    model = theirs(pool=pool)
    state = {name: x[None] if name in ("cls_token", "pos_embedding") else x for name, x in model.state_dict().items()}
    found = opened(save(tmp_path / "theirs.pth", state), heads=3)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_positions_of_patches_alone(tmp_path: Path) -> None:
    """vit_with_patch_dropout.py adds positions before it adds the class token."""
    model = randomized(vit_with_patch_dropout.ViT(**SIZES))
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    assert found.config.model == CONFIG.replace(patch_norms=False, class_token_position=False)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_a_mean_over_the_class_token_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.pth", Before1(theirs(), True).state())
    with pytest.raises(InputError, match="ViTConfig cannot express vit-pytorch's mean over class token and patches"):
        opened(path, heads=3, pooling="gap")


def test_a_stated_mean_over_the_class_token_is_refused(tmp_path: Path) -> None:
    """Unless the user says that it is of something else."""
    state = Before1(theirs(), True).state()
    torch.save({"state_dict": state, "hyper_parameters": {"pool": "mean"}}, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=r"hyper_parameters: pool states pooling=gap, but ViTConfig cannot express"):
        opened(tmp_path / "theirs.pt", heads=3)
    assert opened(tmp_path / "theirs.pt", heads=3, pooling="cls").config.model.pooling == "cls"


def test_another_activation_in_a_pickled_model(tmp_path: Path) -> None:
    model = theirs()
    for _, mlp in model.transformer.layers:
        mlp.net[2] = nn.GELU(approximate="tanh")
    torch.save(model, tmp_path / "theirs.pt")
    found = opened(tmp_path / "theirs.pt")
    assert found.config.model.activation == "gelu_tanh"
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_one_head_as_wide_as_the_model(tmp_path: Path) -> None:
    """It has no attention projection: the identity is put in its place, which is not written back."""
    model = theirs(heads=1, dim_head=24)
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()))
    assert found.config.model == CONFIG.replace(heads=1)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    with pytest.raises(InputError, match="no attention projection for one head as wide as the model"):
        save_checkpoint(tmp_path / "ours.pth", found, format="lucidrains")


def test_simple_vit(tmp_path: Path) -> None:
    """Its table, computed in float32, is ours where it is computed in float64; it is written as a ViT."""
    model: Any = randomized(SimpleViT(**SIZES))
    model.pos_embedding = torch.from_numpy(sincos2d((3, 3), 24, "big_vision").copy())
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3, image_size=12)
    assert found.config.model == CONFIG.replace(**MEAN, position_embedding="sincos2d_big_vision")
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    notes = save_checkpoint(tmp_path / "ours.pth", found, format="lucidrains")
    assert "positions: the table of 'sincos2d_big_vision'" in notes
    vit = ViT(**SIZES, pool="mean").double().eval()
    vit.load_state_dict(torch.load(tmp_path / "ours.pth"), strict=True)
    assert largest_difference(found, vit(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_the_table_of_simple_vit() -> None:
    """With u = 2**-24: the exponent's rounding counts ln(10000) < 9.3 times in the power, which with its reciprocal
    adds 3 u, and the product with a coordinate, at most 3, one more: 3 * 13.3 u < 40 u, and 2 u for the sine."""
    expected = posemb_sincos_2d(h=4, w=3, dim=24).double().numpy()
    assert np.abs(sincos2d((4, 3), 24, "big_vision") - expected).max() <= 42 * 2.0**-24


def test_simple_vit_does_not_tell_its_size(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.pth", SimpleViT(**SIZES).state_dict())
    with pytest.raises(InputError, match="no array shows the image size of a SimpleViT; use --set image_size=PIXELS"):
        opened(path, heads=3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        MEAN,
        {"head_dim": 16},
        {"channels": 1},
        {"image_size": (8, 20)},
        {"patch_size": (4, 2), "image_size": 12},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_written_opens_there_and_comes_back(fields: dict[str, Any], tmp_path: Path) -> None:
    ours = checkpoint(CONFIG.replace(**fields))
    (note,) = save_checkpoint(tmp_path / "vit.pth", ours, format="lucidrains")
    assert note.startswith("opens in vit_pytorch.ViT(image_size=(")
    model = ViT(**lineage.arguments(ours.config.model)).double().eval()
    model.load_state_dict(torch.load(tmp_path / "vit.pth"), strict=True)
    expected = model(nchw(images(ours.config.model)))
    assert (
        largest_difference(ours, expected if ours.config.model.num_classes else expected[:, 0]) <= parity.FLOAT64_BOUND
    )
    said = {name: fields[name] for name in ("image_size", "patch_size") if name in fields}
    back = opened(tmp_path / "vit.pth", heads=3, **said)
    assert back.config.model == ours.config.model
    assert_same_bits(back.arrays, ours.arrays)


WIDENED: dict[str, tuple[dict[str, Any], str]] = {
    "no biases": ({"proj_bias": False, "head_bias": False, "patch_bias": False}, "proj_bias: zeros"),
    "class token without position": ({"class_token_position": False}, "position of the class token: zeros"),
    "sincos": ({"position_embedding": "sincos2d_mae"}, "positions: the table of 'sincos2d_mae'"),
    "no positions": ({**MEAN, "position_embedding": "none"}, "positions: the table of 'none'"),
}


@pytest.mark.parametrize("name", WIDENED)
def test_filled_in_where_it_changes_no_value(name: str, tmp_path: Path) -> None:
    fields, note = WIDENED[name]
    ours = checkpoint(CONFIG.replace(**fields))
    assert note in save_checkpoint(tmp_path / "vit.pth", ours, format="lucidrains")
    model = ViT(**SIZES, pool="cls" if ours.config.model.class_token else "mean").double().eval()
    model.load_state_dict(torch.load(tmp_path / "vit.pth"), strict=True)
    assert largest_difference(ours, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"qkv_bias": True}, "qkv_bias true (it has false)"),
        ({"patch_norms": False}, "patch_norms false (it has true)"),
        ({"pooling": "gap"}, "pooling gap (it has cls)"),
        ({"class_token": False, "pooling": "first"}, "pooling first (it has gap)"),
        ({"representation": 16}, "representation 16 (it has none)"),
        ({"registers": 2}, "registers 2 (it has 0)"),
        ({"qk_norm": True}, "qk_norm true (it has false)"),
    ],
    ids=str,
)
def test_what_it_cannot_hold_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        save_checkpoint(tmp_path / "vit.pth", checkpoint(CONFIG.replace(**fields)), format="lucidrains")
    assert str(error.value) == f"a checkpoint in memory: lucidrains cannot express {reason}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("transformer.norm.bias"), r"missing transformer\.norm\.bias \[24\]"),
        (
            lambda s: s.pop("transformer.layers.1.0.to_out.0.bias"),
            r"missing \S*layers\.1\.0\.to_out\.0\.bias",
        ),
        (lambda s: s.pop("transformer.layers.0.0.to_qkv.weight"), r"layers\.0\.0\.to_qkv\.weight is missing"),
        (lambda s: s.pop("cls_token"), r"cls_token is missing; expected an array of 2 axes"),
        (lambda s: s.pop("pos_embedding"), r"pos_embedding is missing; expected an array of 2 axes"),
        (lambda s: s.update({"register_tokens": torch.ones(2, 24)}), "does not use: register_tokens"),
        (lambda s: s.update({"pos_embedding": torch.ones(8, 24)}), "7 positions do not form a square grid"),
        (
            lambda s: s.update({"mlp_head.weight": torch.ones(5, 25)}),
            r"mlp_head\.weight expected \[5, 24\]",
        ),
        (lambda s: s.update({"to_patch_embedding.2.weight": torch.ones(24, 50)}), "50 values do not form a square"),
        (lambda s: s.update({"to_patch_embedding.2.weight": torch.ones(24)}), r"2\.weight has shape \[24\]"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, said: str, tmp_path: Path) -> None:
    state = dict(theirs().state_dict())
    change(state)
    with pytest.raises(InputError, match=said) as error:
        opened(save(tmp_path / "theirs.pth", state), heads=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({}, "no array shows the heads, and 24 is not a multiple of 64; use --set heads=N"),
        ({"heads": 5}, r"to_qkv\.weight expected \[60, 24\] found \[72, 24\]"),
        ({"heads": 0}, "heads: expected 1 or more"),
        ({"heads": 3, "channels": 5}, "48 values do not form a square patch"),
        ({"heads": 3, "patch_size": 8}, "channels: expected 1 or more"),
        ({"heads": 3, "image_size": 16}, r"pos_embedding expected \[17, 24\] found \[10, 24\]"),
    ],
    ids=str,
)
def test_what_the_user_says_has_to_fit(said: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=error):
        opened(save(tmp_path / "theirs.pth", theirs().state_dict()), **said)
