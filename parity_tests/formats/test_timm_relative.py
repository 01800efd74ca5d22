"""timm's models with relative positions, parallel blocks and patches in: read, and written as timm's again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import vit_torch
from vit_core import parity
from vit_core.checkpoints import open_checkpoint, save_checkpoint
from vit_core.errors import InputError
from vit_torch.references.timm import float64_angles

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 5}
KINDS = (
    "beit_base_patch16_224",
    "vit_relpos_small_patch16_rpn_224",
    "vit_base_patch16_xp_224",
    "naflexvit_base_patch16_parfac_gap",
)
MORE = (
    "beitv2_large_patch16_224",
    "vit_relpos_base_patch16_224",
    "vit_relpos_medium_patch16_cls_224",
    "vit_relpos_base_patch16_clsgap_224",
    "vit_srelpos_small_patch16_224",
    "vit_pwee_patch16_reg1_gap_256",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_siglip",
)


def created(name: str, **options: Any) -> Any:
    """timm's model in float64, its buffers computed in float64 too."""
    torch.set_default_dtype(torch.float64)
    try:
        return timm.create_model(name, **options).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def built(name: str, **more: Any) -> Any:
    """timm's model with random weights."""
    torch.manual_seed(0)
    options = SMALL if name.startswith("naflexvit") else {**SMALL, "img_size": 64}
    model = created(name, **options, **more)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def hub_folder(model: Any, name: str, folder: Path) -> Path:
    """A folder as timm pushes it."""
    folder.mkdir()
    save_file({key: x.contiguous() for key, x in model.state_dict().items()}, folder / "model.safetensors")
    size = [3, *model.patch_embed.img_size] if hasattr(model, "patch_embed") else [3, 384, 384]
    config = {"architecture": name, "num_classes": 5, "model_args": SMALL, "pretrained_cfg": {"input_size": size}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def outputs(model: Any, image_size: tuple[int, int]) -> np.ndarray:
    x_BCHW = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, *image_size)))
    with torch.no_grad(), float64_angles(model):
        output_BC: np.ndarray = model(x_BCHW).numpy()
    return output_BC


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_read_and_written(name: str, tmp_path: Path) -> None:
    theirs = built(name)
    checkpoint = open_checkpoint(hub_folder(theirs, name, tmp_path / "hub"))
    size = checkpoint.config.model.image_size
    expected = outputs(theirs, size)
    assert distance(outputs(vit_torch.load(checkpoint, dtype="float64"), size), expected) < parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / "written", checkpoint, format="timm")
    again = created(f"local-dir:{tmp_path / 'written'}", pretrained=True)
    assert distance(outputs(again, size), expected) < parity.FLOAT64_BOUND


def test_another_resolution_of_a_table(tmp_path: Path) -> None:
    """timm interpolates in float32: so exact is each value of a table of order 0.1, added to scores."""
    theirs = built("beit_base_patch16_224")
    checkpoint = open_checkpoint(hub_folder(theirs, "beit_base_patch16_224", tmp_path / "hub"))
    theirs.set_input_size((80, 96))
    expected = outputs(theirs, (80, 96))
    loaded = vit_torch.load(checkpoint, dtype="float64", image_size=(80, 96))
    assert distance(outputs(loaded, (80, 96)), expected) < 2**-20
    run_time = vit_torch.load(checkpoint, dtype="float64")
    x_BCHW = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 80, 96)))
    with torch.no_grad():
        found = run_time(x_BCHW, interpolate=True).numpy()
    assert distance(found, outputs(loaded, (80, 96))) < parity.FLOAT64_BOUND


def test_norms_that_no_array_places_are_asked_about(tmp_path: Path) -> None:
    """vit_relpos_*_rpn_* has the arrays of other vit_relpos models without LayerScale."""
    save_file(built("vit_relpos_small_patch16_rpn_224").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"before the branches or after .* use --set branch_norm=before or after"):
        open_checkpoint(tmp_path / "model.safetensors", fields={"image_size": 64})
    fields = {"image_size": 64, "branch_norm": "after"}
    assert open_checkpoint(tmp_path / "model.safetensors", fields=fields).config.model.heads == 2


def test_the_size_of_a_table_is_read_as_square(tmp_path: Path) -> None:
    """And said to be assumed."""
    save_file(built("beit_base_patch16_224").state_dict(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.config.model.image_size == (64, 64)
    assert "image_size" in {assumed.field for assumed in checkpoint.assumptions}


def test_patches_that_do_not_fit_the_projection(tmp_path: Path) -> None:
    save_file(built("naflexvit_base_patch16_gap", in_chans=2).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has shape \[64, 512\], not that of patches 13x13 with 3 channels"):
        open_checkpoint(tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path / "model.safetensors", fields={"channels": 2})
    assert opened.config.model.patch_size == (16, 16)
