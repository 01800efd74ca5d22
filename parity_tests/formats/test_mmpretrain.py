"""OpenMMLab's mmpretrain: files with its documented names, against timm's model of the same arrays in float64.

mmpretrain needs mmcv, which does not build beside present versions of PyTorch, so the names are spelled out here after
mmpretrain/models/backbones/{vision_transformer,deit}.py, heads/{vision_transformer,deit,linear}_head.py and mmcv's FFN.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, randomized, save
from vit_core import parity
from vit_core.errors import InputError

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
HEADS = {"heads": 3}
LAYER = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}
GATED = {"mlp.fc1": "ffn.w12", "mlp.fc2": "ffn.w3"}
WHOLE = {"patch_embed.proj": "patch_embed.projection", "norm": "ln1", "fc_norm": "ln2", "norm_pre": "pre_norm"}
HEAD = {"head": "head.layers.head", "head_dist": "head.layers.head_dist", "pre_logits.fc": "head.layers.pre_logits"}


def mmpretrain(state: Mapping[str, Tensor], head: Mapping[str, str] = HEAD, gated: bool = False) -> dict[str, Tensor]:
    """timm's state dict under mmpretrain's names."""
    renamed = {}
    for name, x in state.items():
        stem, _, leaf = name.rpartition(".")
        if stem in head:
            renamed[f"{head[stem]}.{leaf}"] = x
        elif name.startswith("blocks."):
            _, layer, inside = stem.split(".", 2)
            if leaf == "gamma":
                inside, leaf = ("attn.gamma1", "weight") if inside == "ls1" else ("ffn.gamma2", "scale")
            else:
                inside = {**LAYER, **(GATED if gated else {})}[inside]
            renamed[f"backbone.layers.{layer}.{inside}.{leaf}"] = x
        else:
            renamed[f"backbone.{WHOLE[stem]}.{leaf}" if stem in WHOLE else f"backbone.{name}"] = x
    return renamed


def model_of(**options: Any) -> Any:
    return randomized(VisionTransformer(**{**TINY, **options}))


def checked(path: Path, model: Any, **fields: Any) -> Any:
    found = opened(path, **HEADS, **fields)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert found.format == "mmpretrain"
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    return found


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"init_values": 0.1}, {}),
        ({"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)}, {"norm_epsilon": 1e-5}),
        ({"global_pool": "avg"}, {}),
        ({"qkv_bias": False}, {}),
    ],
    ids=["cls", "LayerScale", "pre-norm (CLIP)", "mean", "no qkv bias"],
)
def test_a_checkpoint(options: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    """As mmengine saves it: weights, optimizer, and the config as text."""
    model = model_of(**options)
    saved = {
        "meta": {"mmengine_version": "0.10", "cfg": "model = dict(type='ImageClassifier')", "epoch": 3},
        "state_dict": mmpretrain(model.state_dict()),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "message_hub": {"log_scalars": {}},
    }
    torch.save(saved, tmp_path / "epoch_3.pth")
    found = checked(tmp_path / "epoch_3.pth", model, **fields)
    assumed = {one.field for one in found.assumptions}
    assert assumed == {"image_size", "pooling", "activation", "norm_epsilon", "position_resampling"} - set(fields)
    assert any("left out" in note and "optimizer" in note for note in found.notes)


def of_deit3(change: Callable[[nn.Module], None]) -> tuple[Any, dict[str, Tensor]]:
    """timm's DeiT III and its weights under mmpretrain's names. change: is applied to each block first."""
    model = model_of(no_embed_class=True, init_values=0.1)
    for block in model.blocks:
        change(block)
    return model, mmpretrain(model.state_dict())


def copy_norm(block: Any) -> None:
    block.norm2.load_state_dict(block.norm1.state_dict())


def test_deit3_that_was_trained_in_mmpretrain(tmp_path: Path) -> None:
    """DeiT3TransformerEncoderLayer.forward of mmpretrain 1.2.0 computes ln1 before both branches."""
    model, state = of_deit3(copy_norm)
    checked(save(tmp_path / "copied.pth", state), model, image_size=12)
    initial = {name: torch.full_like(x, name.endswith("weight")) for name, x in state.items() if ".ln2." in name}
    found = checked(save(tmp_path / "trained.pth", {**state, **initial}), model, image_size=12)
    assert any("ln2 has its initial values" in note for note in found.notes)


def test_deit3_with_two_trained_norms(tmp_path: Path) -> None:
    model, state = of_deit3(lambda block: None)
    with pytest.raises(InputError, match="copy each layer's ln1 into its ln2") as error:
        opened(save(tmp_path / "a.pth", state))
    assert "\n" not in str(error.value)
    chosen = {name.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2."): x for name, x in state.items()}
    checked(save(tmp_path / "b.pth", chosen), model, image_size=12)


def test_the_mean_with_one_norm(tmp_path: Path) -> None:
    """out_type 'avg_featmap' without final_norm: one norm after the mean."""
    model = model_of(global_pool="avg")
    state = mmpretrain(model.state_dict())
    assert "backbone.ln2.weight" in state
    assert "backbone.ln1.weight" not in state
    assert checked(save(tmp_path / "a.pth", state), model).config.model.final_norm == "after_pooling"


def test_two_norms_are_refused(tmp_path: Path) -> None:
    state = mmpretrain(model_of().state_dict())
    state |= {f"backbone.ln2.{leaf}": torch.ones(24) for leaf in ("weight", "bias")}
    with pytest.raises(InputError, match="a norm before the mean of the tokens and another one after it") as error:
        opened(save(tmp_path / "a.pth", state))
    assert "\n" not in str(error.value)


def test_a_linear_head_and_no_prefix(tmp_path: Path) -> None:
    model = model_of()
    state = mmpretrain(model.state_dict(), {"head": "head.fc"})
    checked(save(tmp_path / "a.pth", state), model)
    bare = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    found = opened(save(tmp_path / "b.pth", bare), **HEADS)
    assert found.config.model.num_classes == 0


def test_a_hidden_layer_in_the_head(tmp_path: Path) -> None:
    model = model_of()
    inner = randomized(nn.Linear(24, 16))
    outer = randomized(nn.Linear(16, 5), 1)
    state = {name: x for name, x in model.state_dict().items() if not name.startswith("head.")}
    heads = {"pre_logits.fc": inner, "head": outer}
    state |= {
        f"{name}.{leaf}": getattr(linear, leaf).data for name, linear in heads.items() for leaf in ("weight", "bias")
    }
    found = opened(save(tmp_path / "a.pth", mmpretrain(state)), **HEADS)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(nchw(images(found.config.model))), pre_logits=True)
        expected = outer(torch.tanh(inner(features)))
    assert found.config.model.representation == 16
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def test_distilled_deit(tmp_path: Path) -> None:
    model = randomized(timm.create_model("deit_tiny_distilled_patch16_224", **TINY))
    found = checked(save(tmp_path / "a.pth", mmpretrain(model.state_dict())), model)
    assert found.config.model.distillation == "head"


def test_a_gated_mlp(tmp_path: Path) -> None:
    """DINOv2's giant: w12 and w3 in one module."""
    layers: Any = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 0.1}
    model = model_of(mlp_ratio=4, **layers)
    found = checked(save(tmp_path / "a.pth", mmpretrain(model.state_dict(), gated=True)), model)
    assert (found.config.model.mlp, found.config.model.mlp_dim) == ("swiglu", 48)


@pytest.mark.parametrize("extra", ["layers.0.attn.relative_position_bias_table", "layers.0.attn.rel_pos_h"])
def test_other_backbones_with_these_names_are_refused(extra: str, tmp_path: Path) -> None:
    """BEiT's and SAM's have positions relative to each other in the attention."""
    state = mmpretrain(model_of().state_dict())
    with pytest.raises(InputError, match="relative positions, as in Swin and SAM") as error:
        opened(save(tmp_path / "a.pth", {**state, f"backbone.{extra}": torch.ones(3, 8)}))
    assert "\n" not in str(error.value)


def test_a_neck_before_the_head_is_refused(tmp_path: Path) -> None:
    """LinearNeck and others of mmpretrain, whose config is not read."""
    model = model_of()
    state = {**mmpretrain(model.state_dict()), "neck.fc.weight": torch.ones(24, 24), "neck.fc.bias": torch.ones(24)}
    path = save(tmp_path / "x.pth", state)
    with pytest.raises(InputError, match=r"neck\.fc.* may change the inputs of the head; .*--set num_classes=0"):
        opened(path, **HEADS)
    checked(path, model, num_classes=5)
    model.reset_classifier(0)
    checked(path, model, num_classes=0)


def test_the_activation_of_a_hidden_layer_is_assumed(tmp_path: Path) -> None:
    model = model_of()
    hidden = {"head.layers.pre_logits.weight": torch.ones(8, 24), "head.layers.pre_logits.bias": torch.ones(8)}
    state = {**mmpretrain(model.state_dict()), **hidden, "head.layers.head.weight": torch.ones(5, 8)}
    found = opened(save(tmp_path / "x.pth", state), **HEADS)
    assert "representation: 8, with tanh, the default of its head; another act_cfg cannot be expressed" in found.notes
