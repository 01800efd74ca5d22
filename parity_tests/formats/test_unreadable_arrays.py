"""Arrays of a model that are not plain: the model is refused, because without them it would be another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from parity_tests.formats.foreign import opened
from vit_core.errors import InputError

SIZES: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


class Own(torch.Tensor):
    """A class of a user's, which is not imported."""


KINDS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), "a sparse tensor"),
    "negated": (lambda x: torch._neg_view(-x), "a tensor with a lazy negation or conjugation"),
    "without values": (lambda x: x.to("meta"), "a tensor without values (of the meta device)"),
    "own class": (lambda x: x.as_subclass(Own), "a tensor of class parity_tests.formats.test_unreadable_arrays.Own"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.01, 0, torch.qint8), "a quantized tensor"),
}
OPTIONAL: dict[str, dict[str, Any]] = {
    "blocks.0.attn.qkv.bias": {},
    "blocks.1.ls1.gamma": {"init_values": 0.1},
    "norm_pre.weight": {"pre_norm": True},
    "reg_token": {"reg_tokens": 3, "no_embed_class": True},
    "head.weight": {},
}
"""Arrays without which there would be another model, and timm's options for a model that has them."""


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_an_array_that_is_not_plain_is_refused(kind: str, name: str, prefix: str, tmp_path: Path) -> None:
    change, called = KINDS[kind]
    state = timm.create_model("vit_base_patch16_224", **SIZES, **OPTIONAL[name]).state_dict()
    state[name] = change(state[name].clone())
    torch.save({"model": {prefix + key: x for key, x in state.items()}}, tmp_path / "x.pth")
    with pytest.raises(InputError) as error:
        opened(tmp_path / "x.pth", heads=3)
    assert f"arrays of the model that cannot be read: {prefix}{name} ({called}); save them as plain" in str(error.value)


def test_an_object_array_of_a_model_in_npz(tmp_path: Path) -> None:
    state = timm.create_model("vit_base_patch16_224", **SIZES).state_dict()
    arrays = {name: x.numpy() for name, x in state.items()}
    arrays["blocks.0.attn.qkv.bias"] = arrays["blocks.0.attn.qkv.bias"].astype(object)
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cannot be read: blocks.0.attn.qkv.bias \(an array of Python objects\)"):
        opened(tmp_path / "x.npz", heads=3)


def test_names_of_classes_beside_a_model_in_npz(tmp_path: Path) -> None:
    state = timm.create_model("vit_base_patch16_224", **SIZES).state_dict()
    arrays = {name: x.numpy() for name, x in state.items()}
    np.savez(tmp_path / "x.npz", class_names=np.array(["a", "b"], object), **arrays)
    assert any("Python objects are never read: class_names" in note for note in opened(tmp_path / "x.npz").notes)


def test_such_arrays_of_other_parts_are_left_out(tmp_path: Path) -> None:
    """Those of an optimizer, and of another model in the file."""
    state = timm.create_model("vit_base_patch16_224", **SIZES).state_dict()
    other = {f"student.{name}": x.to_sparse() if name == "reg_token" else x for name, x in state.items()}
    other["student.reg_token"] = torch.ones(1, 2, 24).to_sparse()
    optimizer = {"state": {0: {"exp_avg": torch.eye(2).to_sparse()}}}
    torch.save({**{f"teacher.{n}": x for n, x in state.items()}, **other, "optimizer": optimizer}, tmp_path / "x.pth")
    found = opened(tmp_path / "x.pth", heads=3)
    assert found.config.model.registers == 0
    assert "model found under 'teacher'" in found.notes
