"""Every architecture of timm's Vision Transformers: which open by name and are written back, and why others do not.

A new version of timm shows here what is new: a name that is neither read nor in REFUSED fails the test.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from parity_tests.formats.test_timm_configs import source_of
from parity_tests.formats.timm_models import saved
from parity_tests.formats.torch_models import distance, images, ours, randomised
from vit_core import ViTConfig, parity
from vit_core.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from vit_core.checkpoints.formats.allowed_values import ANY
from vit_core.checkpoints.formats.timm.create_model import allowed_values
from vit_core.checkpoints.formats.timm.lineage import FORMAT, write_checkpoint
from vit_core.checkpoints.opening import read_source
from vit_core.errors import InputError
from vit_torch.references.timm import float64_angles

MODULES = (
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "deit", "eva", "beit", "naflexvit"
)  # fmt: skip
NAMES: dict[str, list[str]] = {module: timm.list_models(module=module) for module in MODULES}
REFUSED: dict[str, str] = {
    r"vit_d(little|wee|pwee)_patch16_reg1_gap_256": "differential attention",  # differences of two softmaxes
    r"vit_(small|base)_patch16_18x2_224": "not recognized",  # two attentions and two MLPs in a block
    r"vit_\w+_resnet(26|50)d\w*_224": "missing patch_embed.backbone.conv.weight",  # other stems than Google's
    r"vit_base_mci_224": "not recognized",  # a stem of MobileOne blocks
}
"""Names of architectures that are refused -> text of the error."""


def reason(name: str) -> str | None:
    return next((why for names, why in REFUSED.items() if re.fullmatch(names, name)), None)


def test_nine_tenths_open() -> None:
    names = [name for module in MODULES for name in NAMES[module]]
    assert sum(reason(name) is not None for name in names) <= len(names) / 10
    assert not any(reason(name) for name in NAMES["eva"])


@pytest.mark.release
@pytest.mark.parametrize("module", MODULES)
def test_names_and_shapes_at_full_size(module: str) -> None:
    """Read by name on the meta device; and written with timm's own names and shapes."""
    for name in NAMES[module]:
        theirs, source = source_of(name)
        why, refusal = reason(name), "not recognized"
        try:
            read = read_source(FORMAT, source, {}) if FORMAT.recognizes(source) else None
        except InputError as error:
            read, refusal = None, str(error)
        if read is None:
            assert why is not None, f"{name}: {refusal}"
            assert why in refusal, name
            continue
        assert why is None, f"{name} opens: take it out of REFUSED"
        assert_like(theirs, read.config.model, name)
        if module != "naflexvit":  # it is written as a VisionTransformer, which is one model with it on its own grid
            assert_written(read, {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}, name)


def assert_like(theirs: Any, model: ViTConfig, name: str) -> None:
    """The fields that no array shows, from the modules of a model in memory."""
    epsilons = {one.eps for key, one in theirs.named_modules() if hasattr(one, "eps") and "backbone" not in key}
    assert epsilons == {model.norm_epsilon}, name
    block = theirs.blocks[0]
    assert getattr(block, "attn", block).num_heads == model.heads, name
    assert {"token": "cls", "avg": "gap", "map": "map"}[theirs.global_pool] == model.pooling, name
    if model.pooling == "map":
        assert theirs.attn_pool.num_heads == model.pooling_heads, name
    after = type(block).__name__ in ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")
    assert after == (model.branch_norm == "after")
    assert (getattr(theirs, "rope", None) is None) == (model.rope is None), name


def assert_written(read: Checkpoint, expected: Mapping[str, tuple[int, ...]], name: str) -> None:
    allowed = allowed_values(read.config.model)
    held = all(values == ANY or getattr(read.config.model, field) in values for field, values in allowed.items())
    assert held, name
    if not any(re.match("positions of class|layer_scale: ones|keys and values", note) for note in read.notes):
        assert write_checkpoint(read).arrays.shapes == expected, name


OPEN = [
    name for module in ("vision_transformer", "deit", "eva") for name in NAMES[module] if reason(name) is None
]  # the hybrids are in test_timm.py


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_each_at_depth_2(name: str, tmp_path: Path) -> None:
    theirs = small(name)
    read = open_checkpoint(saved(theirs, tmp_path / "theirs"))
    x_BCHW = images(read)
    expected = outputs(theirs, x_BCHW)
    assert distance(ours(read, x_BCHW), expected) <= parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / "ours", read, format="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert distance(outputs(again, x_BCHW), expected) <= parity.FLOAT64_BOUND


def small(name: str) -> nn.Module:
    """A narrow one of two blocks, for small oblong images."""
    patch = int((re.findall(r"_patch(\d+)", name) or ["16"])[0])
    options: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
    options |= {"num_kv_heads": (4, 2)} if name.endswith("_sapiens2") else {}
    options |= {"mlp_ratio": 3.0} if re.search("giant_patch14.*dinov2|tipsv2", name) else {}
    return randomised(timm.create_model(name, img_size=(2 * patch, 3 * patch), **options))


def outputs(model: nn.Module, x_BCHW: torch.Tensor) -> np.ndarray:
    model = deepcopy(model).double()
    with torch.no_grad(), float64_angles(model):
        found: np.ndarray = model(x_BCHW).numpy()
    return found
