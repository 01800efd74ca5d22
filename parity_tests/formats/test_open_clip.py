"""Image towers of open_clip: files of its own classes, opened here, against the outputs of those classes in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

from parity_tests.formats.foreign import SMALL, images, largest_difference, nchw, opened, randomized, save
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.formats.open_clip.lineage import arguments
from vit_core.errors import InputError

VISION: dict[str, Any] = {"layers": 2, "width": 24, "head_width": 8, "patch_size": 4, "image_size": 12, "mlp_ratio": 2}
TEXT = CLIPTextCfg(context_length=4, vocab_size=6, width=8, heads=2, layers=1)
HEADS = {"heads": 3}


def model_of(quick_gelu: bool = False, **vision: Any) -> Any:
    """A whole CLIP with random values, in float64."""
    return randomized(CLIP(5, CLIPVisionCfg(**{**VISION, **vision}), TEXT, quick_gelu=quick_gelu))


def visual(model: Any, config: ViTConfig) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.visual(nchw(images(config)))
    return output


def config_file(folder: Path, vision: dict[str, Any], **model: Any) -> None:
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    cfg = {"model_cfg": {"embed_dim": 5, **model, "vision_cfg": vision}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(cfg))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("vision", "fields"),
    [
        ({}, {}),
        ({"ls_init_value": 0.1}, {}),
        ({"no_ln_pre": True}, {}),
        ({"pool_type": "avg"}, {"pooling": "gap"}),
        ({"pool_type": "avg", "final_ln_after_pool": True}, {"pooling": "gap", "final_norm": "after_pooling"}),
        ({"image_size": (8, 16)}, {"image_size": (8, 16)}),
    ],
    ids=str,
)
def test_a_state_dict(vision: dict[str, Any], fields: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    model = model_of(**vision)
    path = save(tmp_path / f"clip{suffix}", model.state_dict())
    found = opened(path, **HEADS, **fields)
    assert (found.format, found.config.model.num_classes) == ("open_clip", 5)
    assert largest_difference(found, visual(model, found.config.model)) <= parity.FLOAT64_BOUND
    assert any("left out" in note and "transformer" in note and "token_embedding" in note for note in found.notes)


def test_every_field_that_the_file_does_not_hold_is_an_assumption(tmp_path: Path) -> None:
    found = opened(save(tmp_path / "clip.pt", model_of().state_dict()))
    assert {one.field for one in found.assumptions} == {
        *("image_size", "heads", "activation", "norm_epsilon", "pooling", "final_norm")
    }
    assert (found.config.model.activation, found.config.model.norm_epsilon) == ("gelu", 1e-5)


def test_a_state_dict_of_openai(tmp_path: Path) -> None:
    """Its scripted archives contain three numbers in addition to the arrays, and the activation is quick_gelu."""
    model = model_of(quick_gelu=True)
    numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    found = opened(save(tmp_path / "ViT-B-32.pt", {**model.state_dict(), **numbers}), **HEADS)
    assert found.config.model.activation == "quick_gelu"
    assert largest_difference(found, visual(model, found.config.model)) <= parity.FLOAT64_BOUND
    assert any(one.field == "activation" and "OpenAI" in one.why for one in found.assumptions)


def test_openai_s_weights_without_the_numbers_need_the_activation(tmp_path: Path) -> None:
    model = model_of(quick_gelu=True)
    found = opened(save(tmp_path / "clip.pt", model.state_dict()), **HEADS, activation="quick_gelu")
    assert largest_difference(found, visual(model, found.config.model)) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_folder_with_its_config(quick_gelu: bool, tmp_path: Path) -> None:
    """heads, activation, epsilon, pooling and image size come from open_clip_config.json: nothing is assumed."""
    vision = {**VISION, "image_size": [8, 16], "pool_type": "avg", "norm_kwargs": {"eps": 1e-4}, "ls_init_value": 0.3}
    model = model_of(quick_gelu, **vision)
    save(tmp_path / "open_clip_model.safetensors", model.state_dict())
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # of other weights of the same repository
    config_file(tmp_path, vision, quick_gelu=quick_gelu)
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        found = opened(path)
        assert found.assumptions == ()
        assert largest_difference(found, visual(model, found.config.model)) <= parity.FLOAT64_BOUND
        assert found.config.model.layer_scale == 0.3
        seen = found.config.preprocessing
        assert seen is not None
        assert (seen.mean, seen.interpolation, seen.resize) == ((0.5, 0.4, 0.3), "bilinear", "squash")


def test_both_towers_of_a_custom_text_model(tmp_path: Path) -> None:
    model: Any = randomized(CustomTextCLIP(5, CLIPVisionCfg(**VISION), TEXT))
    torch.save({"state_dict": {f"module.{n}": x for n, x in model.state_dict().items()}}, tmp_path / "clip.pt")
    found = opened(tmp_path / "clip.pt", **HEADS)
    assert largest_difference(found, visual(model, found.config.model)) <= parity.FLOAT64_BOUND


TRUNK: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


def trunk_model(proj: str, pool: str) -> Any:
    """open_clip's adapter around a small timm model (its constructor takes the sizes of a registered one only)."""
    model = open_clip.timm_model.TimmModel("test_vit", 5, image_size=160, pool=pool, proj=proj, proj_bias=True)
    model.trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TRUNK)
    model.trunk.reset_classifier(0, global_pool=pool or "token")
    if proj == "linear":
        model.head.proj = torch.nn.Linear(24, 5)
    return randomized(model)


@pytest.mark.parametrize(("proj", "pool"), [("linear", "avg"), ("linear", ""), ("none", "token")])
def test_a_tower_of_timm(proj: str, pool: str, tmp_path: Path) -> None:
    """A linear projection is the head; the architecture's name and the pooling come from the config file."""
    model = trunk_model(proj, pool)
    state = {f"visual.{name}": x for name, x in model.state_dict().items()}
    save(tmp_path / "open_clip_model.safetensors", {**state, "logit_scale": torch.ones(())})
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": pool, "timm_proj": proj, "image_size": 12}
    config_file(tmp_path, vision)
    found = opened(tmp_path, **HEADS)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert found.format == "timm"
    assert (found.config.model.num_classes, found.config.model.pooling) == (
        5 if proj == "linear" else 0,
        "gap" if pool == "avg" else "cls",
    )
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND
    assert found.config.preprocessing is not None
    assert found.config.preprocessing.mean == (0.5, 0.4, 0.3)


def test_a_projection_of_two_layers_is_left_out_by_name(tmp_path: Path) -> None:
    model: Any = trunk_model("linear", "avg")
    state = {f"visual.trunk.{name}": x for name, x in model.trunk.state_dict().items()}
    state |= {f"visual.head.mlp.fc{i}.weight": torch.ones(24, 24) for i in (1, 2)}
    found = opened(save(tmp_path / "clip.pt", state))
    assert found.config.model.num_classes == 0
    assert any("left out" in note and "visual.head" in note for note in found.notes)


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"attentional_pool": True, "attn_pooler_heads": 1}, "attentional pooling"),
        ({"qk_norm": True}, "that open_clip's model does not use"),
        ({"scale_attn": True}, "that open_clip's model does not use"),
    ],
)
def test_what_the_schema_cannot_express_is_refused(vision: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = save(tmp_path / "clip.pt", model_of(**vision).state_dict())
    with pytest.raises(InputError, match=reason) as error:
        opened(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"attentional_pool": True}, "attentional_pool True cannot be expressed"),
        ({"head_width": 7}, "head_width 7, expected a divisor"),
        ({"pool_type": "none"}, "pool_type 'none'"),
        ({"image_size": 16}, "states image_size 16x16, but there are 10 positions"),
        ({"image_size": "x"}, "image_size 'x', expected pixels"),
        ({"norm_kwargs": 3}, "norm_kwargs 3, expected an epsilon"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(vision: dict[str, Any], reason: str, tmp_path: Path) -> None:
    save(tmp_path / "open_clip_model.safetensors", model_of().state_dict())
    config_file(tmp_path, {**VISION, **vision})
    with pytest.raises(InputError, match=reason) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["longest", "shortest"])
def test_preprocessing(mode: str, tmp_path: Path) -> None:
    """Padding to a square has no place in Preprocessing: it is left out, and the weights open."""
    save(tmp_path / "open_clip_model.safetensors", model_of().state_dict())
    cfg = {"vision_cfg": VISION, "embed_dim": 5}
    preprocess = {"resize_mode": mode, "interpolation": "random"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    found = opened(tmp_path)
    seen = found.config.preprocessing
    if mode == "longest":
        assert seen is None
        assert any("resize_mode longest cannot be expressed" in note for note in found.notes)
    else:
        assert seen is not None
        assert (seen.resize, seen.interpolation, seen.crop_fraction) == ("crop", "bicubic", 1.0)
        assert seen.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "fields",
    [
        {"pre_norm": True, "activation": "quick_gelu"},
        {"pre_norm": True, "layer_scale": 0.1, "image_size": (8, 16), "mlp_dim": 41},
        {"pooling": "gap", "final_norm": "after_pooling"},
        {"num_classes": 0, "head_bias": True, "norm_epsilon": 1e-6},
    ],
    ids=str,
)
def test_written_files_open_in_open_clip(fields: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    config = SMALL.replace(**{"norm_epsilon": 1e-5, "patch_bias": False, "head_bias": False, **fields})
    weights = checkpoint(config)
    path = tmp_path / f"clip{suffix}"
    notes = save_checkpoint(path, weights, format="open_clip")
    assert any("opens (without 'visual.') in open_clip.transformer.VisionTransformer(" in note for note in notes)
    norm = lambda width: LayerNorm(width, eps=config.norm_epsilon)  # noqa: E731 (as its constructor takes it)
    act = QuickGELU if config.activation == "quick_gelu" else torch.nn.GELU
    model = VisionTransformer(**arguments(config), norm_layer=norm, act_layer=act).double().eval()
    if not config.num_classes:
        model.proj = None
    found = opened(
        path,
        **{
            name: getattr(config, name) for name in ("heads", "image_size", *set(fields) - {"num_classes", "head_bias"})
        },
    )
    state = {name.removeprefix("visual."): torch.from_numpy(np.array(x)) for name, x in state_of(path).items()}
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model(nchw(images(config)))
    assert largest_difference(weights, expected) <= parity.FLOAT64_BOUND
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


def state_of(path: Path) -> dict[str, np.ndarray]:
    from vit_core.checkpoints.containers import open_container

    return dict(open_container(path).arrays)
