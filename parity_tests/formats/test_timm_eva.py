"""timm's Eva class (EVA, EVA-02, PE, rope-vit, DINOv3, LingBot, Sapiens2), read from timm's folders and given back.

timm computes the angles of rotary positions in float32 whatever the type of the model; `float64_angles` has them in
float64 by timm's own formulas, and the bound is parity.FLOAT64_BOUND again.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from parity_tests.formats.timm_models import saved
from parity_tests.formats.torch_models import assert_same_checkpoint, distance, images, in_jax, ours, randomised
from vit_core import ViTConfig, parity
from vit_core.checkpoints import Checkpoint, CheckpointConfig, open_checkpoint, save_checkpoint
from vit_core.errors import InputError
from vit_core.rope import PUBLISHED
from vit_torch.references import reference
from vit_torch.references.timm import float64_angles

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
STRUCTURES: dict[str, dict[str, Any]] = {
    "eva_giant_patch14_224": {},
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_448": {},
    "eva02_large_patch14_clip_224": {"dynamic_img_size": True},
    "eva02_enormous_patch14_clip_224": {},
    "vit_mediumd_patch16_rope_reg1_gap_256": {},
    "vit_pe_core_base_patch16_224": {"num_heads": 6, "attn_pool_num_heads": 3},
    "vit_pe_core_gigantic_patch14_448": {"num_heads": 4},
    "vit_pe_lang_large_patch14_448": {"rope_grid_offset": 0.5, "ref_feat_shape": (5, 2)},
    "vit_pe_spatial_tiny_patch16_512": {},
    "vit_small_patch16_rope_224": {"rope_temperature": 30.0},
    "vit_small_patch16_rope_mixed_ape_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {"global_pool": "token"},
    "vit_7b_patch16_dinov3": {"rope_rotate_half": False, "rope_grid_indexing": "xy", "dynamic_img_size": False},
    "vit_large_patch16_sapiens2": {"num_heads": 4, "num_kv_heads": (4, 2)},
}
"""Architectures of each structure, and arguments over theirs."""


def built(architecture: str, **more: Any) -> nn.Module:
    """A small one with random weights, for oblong images."""
    patch = int(re.findall(r"_patch(\d+)", architecture)[0])
    options = {**TINY, "img_size": (2 * patch, 3 * patch), **STRUCTURES.get(architecture, {}), **more}
    return randomised(timm.create_model(architecture, **options))


def outputs(model: nn.Module, x_BCHW: torch.Tensor) -> np.ndarray:
    """The outputs of timm's model in float64, with float64 angles."""
    model = deepcopy(model).double()
    with torch.no_grad(), float64_angles(model):
        found: np.ndarray = model(x_BCHW).numpy()
    return found


@pytest.mark.parametrize("architecture", STRUCTURES)
def test_read_from_a_folder_and_given_back(architecture: str, tmp_path: Path) -> None:
    theirs = built(architecture)
    read = open_checkpoint(saved(theirs, tmp_path / "theirs"))
    x_BCHW = images(read)
    expected = outputs(theirs, x_BCHW)
    assert distance(ours(read, x_BCHW), expected) <= parity.FLOAT64_BOUND

    assert not save_checkpoint(tmp_path / "ours", read, format="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert distance(outputs(again, x_BCHW), expected) <= parity.FLOAT64_BOUND
    assert_same_checkpoint(open_checkpoint(tmp_path / "ours"), read)
    if "sapiens2" in architecture:  # whose shared keys and values are written out
        assert [note.partition(":")[0] for note in read.notes] == ["layer_scale", "keys and values"]
        return
    assert not read.notes
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_7b_patch16_dinov3",
        pytest.param("vit_small_patch16_rope_mixed_ape_224", marks=pytest.mark.slow),
        pytest.param("eva02_enormous_patch14_clip_224", marks=pytest.mark.slow),
    ],
)
def test_jax(architecture: str, tmp_path: Path) -> None:
    theirs = built(architecture)
    read = open_checkpoint(saved(theirs, tmp_path))
    x_BCHW = images(read)
    assert distance(in_jax(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("architecture", ["vit_small_patch16_dinov3", "eva02_base_patch14_448"])
def test_timm_as_it_computes(architecture: str, tmp_path: Path) -> None:
    """An angle is a coordinate (here below 16, or 2 pi) times a frequency, in a few float32 operations: it is off by
    less than 16 * 4 * 2**-24 = 4e-6, and so are sine and cosine. What two of them change in a score stays below the
    roundings of a whole model in float32. In float64 it is seen that nothing else differs."""
    theirs = built(architecture)
    read = open_checkpoint(saved(theirs, tmp_path))
    x_BCHW = images(read)
    with torch.no_grad():
        found = deepcopy(theirs).double()(x_BCHW).numpy()
    assert parity.FLOAT64_BOUND < distance(ours(read, x_BCHW), found) <= parity.FLOAT32_BOUND


# What is written: from configs of ours.

SMALL = ViTConfig(
    image_size=(8, 12), patch_size=4, width=24, depth=2, heads=3, mlp_dim=36, num_classes=5, activation="gelu",
    position_resampling="bicubic_antialias", rope="eva02",
)  # fmt: skip
NO_POSITIONS: dict[str, Any] = {"position_embedding": "none"}
# fmt: off
WRITTEN: dict[str, dict[str, Any]] = {
    "EVA-02": {"mlp": "swiglu", "mlp_norm": True, "attention_norm": True, "key_bias": False},
    "EVA-02, norms after": {"branch_norm": "after", "mlp": "swiglu", "mlp_norm": True},
    "DINOv3": {"rope": "dinov3", **NO_POSITIONS, "registers": 3, "layer_scale": 0.1, "norm_epsilon": 1e-5,
               "mlp": "swiglu", "key_bias": False, "pooling": "gap"},
    "DINOv3 with a key bias": {"rope": "dinov3", **NO_POSITIONS, "qk_norm": True, "layer_scale": 0.0},
    "DINOv3, norms after": {"rope": "dinov3", **NO_POSITIONS, "branch_norm": "after", "mlp": "swiglu"},
    "coordinates": {"rope": {**PUBLISHED["pe"], "base": 77.0, "offset": 0.3, "reference": (5, 7)},
                    "norm_epsilon": 1e-5},
    "grid, halves": {"rope": {**PUBLISHED["axial"], "pairs": "halves"}, "final_norm": "none"},
    "centered, neighbours": {"rope": {"pairs": "neighbours", "axes": "xy", "offset": 0.25, "base": 7.0}},
    "mixed": {"rope": "mixed", "class_token_position": False, "pooling": "gap", "final_norm": "after_pooling"},
    "training": {"rope": {"shift": 0.1, "jitter": 1.5, "rescale": 2.0}, **NO_POSITIONS, "stochastic_depth": 0.3},
    "attention pooling": {"pooling": "map", "pool_prefix": True, "pool_heads": 2, "pool_mlp_dim": 25, "rope": None},
    "pre-norm, no token": {"pooling": "map", "class_token": False, "pre_norm": True, "patch_bias": False},
    "RMSNorm": {"norm": "rms_norm", "qk_norm": True, "mlp": "swiglu"},
    "no biases": {"qkv_bias": False, "num_classes": 0},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "proj_bias": ({"proj_bias": False, "mlp": "swiglu", "head_dim": 4}, "head_dim 4"),
    "activation": ({"activation": "quick_gelu"}, "activation quick_gelu"),
    "epsilon": ({"norm_epsilon": 1e-4}, "norm_epsilon 0.0001"),
    "periods": ({"rope": {"periods": "bfloat16"}}, "rope"),
    "normalize": ({"rope": {"normalize": "max"}}, "rope"),
    "mixed with an offset": ({"rope": {**PUBLISHED["mixed"], "offset": 1.0}}, "rope"),
    "scaled after": ({"branch_norm": "after", "layer_scale": 1.0}, "layer_scale 1.0"),
    "pooling without prefix": ({"pooling": "map"}, "pool_prefix false"),
    "mean with prefix": ({"pooling": "gap", "pool_prefix": True}, "pool_prefix true"),
    "stem": ({"stem_layers": (2, 2), "patch_size": 8, "image_size": 16}, "stem_layers (2, 2)"),
}
# fmt: on


def ours_of(fields: dict[str, Any]) -> Checkpoint:
    """Random float32 values."""
    config = SMALL.replace(**fields)
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(config, 3).items()}
    return Checkpoint.of(CheckpointConfig(model=config), arrays)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_as_it_is(name: str, tmp_path: Path) -> None:
    mine = ours_of(WRITTEN[name])
    notes = save_checkpoint(tmp_path / "ours", mine, format="timm")
    assert notes == ("preprocessing: unknown, so timm uses ImageNet's mean and std",)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert type(theirs).__name__ == "Eva"
    x_BCHW = images(mine)
    expected = ours(mine, x_BCHW)
    assert distance(expected, outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    assert_same_checkpoint(open_checkpoint(tmp_path / "ours"), mine)

    save_checkpoint(tmp_path / "ours.pth", mine, format="timm")
    opened = reference(tmp_path / "ours.pth", "timm", mine.config.model)
    assert opened is not None
    assert distance(expected, opened(x_BCHW).numpy()) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    fields, reason = REFUSED[name]
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        save_checkpoint(tmp_path / "out", ours_of(fields), format="timm")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_biases_that_eva_has_are_zeros(tmp_path: Path) -> None:
    mine = ours_of({"head_bias": False, "patch_bias": False})
    notes = save_checkpoint(tmp_path / "ours", mine, format="timm")
    assert {"head_bias: zeros", "patch_bias: zeros"} <= set(notes)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    x_BCHW = images(mine)
    assert distance(ours(mine, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


# State dicts alone: how a model rotates is asked, and the likeliest answer comes first.

UNTOLD = {
    "vit_small_patch16_dinov3": "rope=dinov3 (most likely, by the names), eva02, pe, axial, mixed or none",
    "eva02_tiny_patch14_224": "rope=eva02 (most likely, by the names), dinov3, pe",
    "eva02_base_patch14_448": "rope=eva02 (most likely, by the names), dinov3, pe",
    "vit_small_patch16_rope_224": "rope=axial (most likely, by the names), dinov3, eva02",
    "vit_small_patch16_rope_mixed_ape_224": "rope=mixed (most likely, by the names)",
    "vit_small_patch16_rope_ape_224": "--from meta if it is DeiT III, --from timm --set rope=axial if it is rope-vit",
    "vit_pe_lang_large_patch14_448": "rope=pe (most likely, by the names)",
    "eva_giant_patch14_224": "rope=none (most likely, by the names), dinov3",
}


@pytest.mark.parametrize("architecture", UNTOLD)
def test_a_rotation_is_never_guessed(architecture: str, tmp_path: Path) -> None:
    theirs, file = built(architecture, img_size=112), tmp_path / "model.safetensors"
    save_file({name: tensor.numpy() for name, tensor in theirs.state_dict().items()}, file)
    size = {"image_size": 112, "heads": 3}
    with pytest.raises(InputError, match=re.escape(UNTOLD[architecture])) as error:
        open_checkpoint(file, fields=size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(64, 128), (80, 160)], ids=["4x8", "5x10: 7x7 and one more"])
def test_nor_is_one_of_an_oblong_grid(size: tuple[int, int], tmp_path: Path) -> None:
    """rope-vit with absolute positions, whose table has the rows of no square grid, or of a class token's and a square
    one's; under the keys of a trainer too. What is said is computed."""
    theirs, file = built("vit_small_patch16_rope_ape_224", img_size=size), tmp_path / "model.pth"
    for tree in (theirs.state_dict(), {"model": theirs.state_dict()}):
        torch.save(tree, file)
        with pytest.raises(InputError, match=re.escape("--from timm --set rope=axial if it is rope-vit")):
            open_checkpoint(file, fields={"image_size": size, "heads": 3})
    found = open_checkpoint(file, format="timm", fields={"image_size": size, "heads": 3, "rope": "axial"})
    x_BCHW = images(found)
    assert distance(ours(found, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def images_of(theirs: Any) -> tuple[int, int]:
    return tuple(theirs.patch_embed.img_size)


def test_a_state_dict_whose_rotation_is_said(tmp_path: Path) -> None:
    theirs, file = built("vit_small_patch16_dinov3"), tmp_path / "model.safetensors"
    save_file({name: tensor.numpy() for name, tensor in theirs.state_dict().items()}, file)
    fields = {"image_size": images_of(theirs), "heads": 3, "rope": "dinov3", "norm_epsilon": 1e-5, "pooling": "gap"}
    read = open_checkpoint(file, fields=fields)
    assert read.config.provenance.source_format == "timm"
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND
    other = open_checkpoint(file, fields={**fields, "rope": None})
    assert distance(ours(other, x_BCHW), outputs(theirs, x_BCHW)) > 1e-3


def test_plain_names_without_positions_may_be_rotary(tmp_path: Path) -> None:
    mine, file = ours_of({**NO_POSITIONS, "rope": "axial"}), tmp_path / "model.safetensors"
    save_file(dict(mine.arrays), file)
    with pytest.raises(InputError, match=re.escape("--set rope=NAME (dinov3, eva02, pe, axial, mixed)")):
        open_checkpoint(file, fields={"image_size": (8, 12)})
    read = open_checkpoint(file, fields={"image_size": (8, 12), "heads": 3, "rope": "axial"})
    assert read.config.model == mine.config.model


def test_a_training_script_names_the_architecture(tmp_path: Path) -> None:
    theirs = built("vit_small_patch16_dinov3_qkvb")
    args = {"model": "vit_small_patch16_dinov3_qkvb", "gp": "token", "model_kwargs": {"num_heads": 3}}
    args["input_size"] = [3, *images_of(theirs)]
    checkpoint = {"arch": args["model"], "args": args, "state_dict": theirs.state_dict()}
    torch.save(checkpoint, tmp_path / "last.pth.tar")
    read = open_checkpoint(tmp_path / "last.pth.tar")
    assert read.config.model.rope is not None
    x_BCHW = images(read)
    assert distance(ours(read, x_BCHW), outputs(theirs, x_BCHW)) <= parity.FLOAT64_BOUND


def test_learned_frequencies_of_another_depth_are_refused(tmp_path: Path) -> None:
    folder = saved(built("vit_small_patch16_rope_mixed_224"), tmp_path)
    arrays = load_file(folder / "model.safetensors")
    save_file(arrays | {"rope.freqs": arrays["rope.freqs"][:, :1].copy()}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"rope.freqs has shape \[2, 1, 3, 8\]; expected \[2, 2, heads, pairs\]"):
        open_checkpoint(folder)
