"""Checkpoints opened in their own libraries: what a reference computes is what our model does, or what is broken shows.

The files are made by the libraries themselves, or by the formats that have a test of their own beside this one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from torch import Tensor

import vit_torch
from parity_tests.formats.foreign import images, nchw, randomized, save
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoints import save_checkpoint
from vit_core.errors import InputError
from vit_torch.references import reference

SMALL = ViTConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, mlp_dim=40, num_classes=5, activation="gelu")
LUCIDRAINS: dict[str, Any] = {"norm_epsilon": 1e-5, "qkv_bias": False, "patch_norms": True}
MEAN: dict[str, Any] = {"class_token": False, "pooling": "gap"}
NO_TOKEN_MAP: dict[str, Any] = {"class_token": False, "pooling": "map"}
DINO: dict[str, Any] = {"norm_epsilon": 1e-6, "num_classes": 0}
DINOV2: dict[str, Any] = {**DINO, "layer_scale": 0.1}
CLIP: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu"}


def agree(run: Any, config: ViTConfig, weights: Any) -> None:
    """The reference and our model give the same for the same random images."""
    x_BCHW = nchw(images(config))
    found: Tensor = run(x_BCHW)
    assert (found.dtype, found.requires_grad) == (torch.float64, False)
    expected = vit_torch.load(weights, dtype="float64")(x_BCHW).detach().numpy()
    assert parity.difference(found.numpy(), expected)[1] <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    ("format", "suffix", "fields"),
    [
        ("torchvision", ".pth", {}),
        ("torchvision", ".safetensors", {"representation": 16}),
        ("torchvision", ".pth", {"num_classes": 0}),
        ("torchvision", ".pth", {"num_classes": 0, "representation": 16}),
        ("lucidrains", ".pth", LUCIDRAINS),
        ("lucidrains", ".safetensors", {**LUCIDRAINS, **MEAN, "head_dim": 5, "image_size": (8, 12)}),
        ("lucidrains", ".pth", {**LUCIDRAINS, "num_classes": 0}),
        ("lucidrains", ".pth", {**LUCIDRAINS, **MEAN, "num_classes": 0}),
        ("lukemelas", ".pth", {"image_size": (8, 12), "channels": 1}),
        ("timm", ".pth", {}),
        ("timm", ".safetensors", {**MEAN, "final_norm": "after_pooling", "image_size": (8, 12)}),
        ("timm", ".pth", {**NO_TOKEN_MAP, "activation": "gelu_tanh", "num_classes": 0}),
        ("timm", ".pth", {**CLIP, "norm_epsilon": 1e-5}),
        ("timm", ".pth", {"mlp_dim": 41, "qk_norm": True, "layer_scale": 0.1, "proj_bias": False}),
        ("timm", ".pth", {"registers": 2, "class_token_position": False, "channels": 1}),
        ("open_clip", ".safetensors", {**CLIP, "head_bias": False}),
        ("open_clip", ".pth", {**CLIP, "activation": "gelu", "num_classes": 0, "norm_epsilon": 1e-5}),
        ("open_clip", ".pth", {"patch_bias": False, "pooling": "gap", "head_bias": False, "image_size": (8, 16)}),
        ("meta", ".pth", {**DINO, "proj_bias": True, "mlp_dim": 41}),
        ("meta", ".pth", DINOV2),
        ("meta", ".pth", {**DINOV2, "registers": 4, "mlp": "swiglu"}),
        ("meta", ".pth", {**DINOV2, "registers": 4, "num_classes": 5, "pooling": "cls_gap"}),
    ],
    ids=str,
)
def test_a_state_dict(format: str, suffix: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = SMALL.replace(**fields)
    weights = checkpoint(config)
    path = tmp_path / f"vit{suffix}"
    if format == "timm":  # whose names are ours
        save(path, {name: torch.from_numpy(array) for name, array in weights.arrays.items()})
    else:
        save_checkpoint(path, weights, format=format)
    agree(reference(path, format, config), config, weights)


BEIT: dict[str, Any] = {
    "relative_bias": "table",
    "position_embedding": "none",
    "class_token_position": False,
    "key_bias": False,
    "norm_epsilon": 1e-6,
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "fields",
    [
        BEIT,
        {**BEIT, "relative_bias_shared": True, "layer_scale": 0.1},
        {"key_bias": False, "norm_epsilon": 1e-6},
        {"parallel": True, "norm_epsilon": 1e-6, **NO_TOKEN_MAP},
        {"parallel": True, "norm_epsilon": 1e-6, "qkv_bias": False, "qk_norm": True},
    ],
    ids=str,
)
def test_a_state_dict_of_another_class_of_timm(fields: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    """Beit, Eva and parallel blocks, with buffers that no file contains."""
    config = SMALL.replace(**fields)
    weights, path = checkpoint(config), tmp_path / f"vit{suffix}"
    save_checkpoint(path, weights, format="timm")
    agree(reference(path, "timm", config), config, weights)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"norm_epsilon": 1e-5}, "timm cannot express norm_epsilon 1e-05"),
        ({"norm_epsilon": 1e-6, "mlp_norm": True}, "timm cannot express mlp_norm true"),
        ({"norm_epsilon": 1e-6, "attention_norm": True}, "timm cannot express attention_norm true"),
    ],
)
def test_what_timms_parallel_blocks_do_not_have(fields: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=error):
        save_checkpoint(tmp_path / "vit.pth", checkpoint(SMALL.replace(parallel=True, **fields)), format="timm")


@pytest.mark.parametrize(
    ("architecture", "arguments", "fields"),
    [
        ("vit_tiny_patch16_224", {}, {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"pooling": "gap", "final_norm": "after_pooling"}),
        ("deit_tiny_distilled_patch16_224", {}, {"distillation": "head"}),
    ],
)
def test_a_folder_of_timm(architecture: str, arguments: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = randomized(timm.create_model(architecture, **sizes, **arguments)).float()
    save_for_hf(model, str(tmp_path), model_args={**sizes, **arguments}, safe_serialization=True)
    config = SMALL.replace(mlp_dim=96, **fields)
    weights = checkpoint(config, {name: x.numpy() for name, x in model.state_dict().items()})
    agree(reference(tmp_path, "timm", config), config, weights)


HF: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTConfig", {"num_labels": 5}, {}),
    "ViTModel": ("ViTConfig", {}, {"num_classes": 0, "representation": 24}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {"num_labels": 5}, {"distillation": "head"}),
    "DeiTForImageClassification": ("DeiTConfig", {"num_labels": 5}, {"distillation": "token"}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"num_labels": 5, "mlp_ratio": 2}, {"pooling": "cls_gap"}),
    "Dinov2Model": ("Dinov2Config", {"mlp_ratio": 2}, {"num_classes": 0}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"mlp_ratio": 2}, {"num_classes": 0, "registers": 4}),
    "SiglipVisionModel": ("SiglipVisionConfig", {}, {**NO_TOKEN_MAP, "num_classes": 0}),
    "CLIPVisionModel": ("CLIPVisionConfig", {}, {**CLIP, "num_classes": 0}),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {"projection_dim": 5}, {**CLIP, "head_bias": False}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    """Held against transformers' own model, in memory: which of its outputs our model gives is what is tested."""
    config_class, options, fields = FOLDERS[name]
    config = getattr(transformers, config_class)(**HF, **options)
    config._attn_implementation = "sdpa"
    model: Any = randomized(getattr(transformers, name)(config))
    model.save_pretrained(tmp_path)
    ours = SMALL.replace(**fields)
    x_BCHW = nchw(images(ours))
    with torch.no_grad():
        out = model(pixel_values=x_BCHW)
    key = {"CLIPVisionModelWithProjection": "image_embeds"}.get(
        name, "logits" if "Classif" in name else "pooler_output"
    )
    found = reference(tmp_path, "transformers", ours)
    assert found is not None
    assert found(x_BCHW).shape == (2, ours.num_classes or ours.features)
    assert parity.difference(found(x_BCHW).numpy(), out[key].numpy())[1] <= parity.FLOAT64_BOUND


def test_a_model_of_transformers_without_its_pooler(tmp_path: Path) -> None:
    model: Any = randomized(transformers.ViTModel(transformers.ViTConfig(**HF), add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    ours = SMALL.replace(num_classes=0)
    x_BCHW = nchw(images(ours))
    found = reference(tmp_path, "transformers", ours)
    assert found is not None
    with torch.no_grad():
        expected = model(pixel_values=x_BCHW).last_hidden_state[:, 0]
    assert parity.difference(found(x_BCHW).numpy(), expected.numpy())[1] <= parity.FLOAT64_BOUND


def google_arrays(config: ViTConfig, arrays: LazyArrays) -> dict[str, np.ndarray]:
    """The names and layouts of google-research/vision_transformer, big_vision's where there is no class token."""
    D, T, K, big = config.width, config.heads, config.head_width, not config.class_token
    attention, mlp, norm = ("MultiHeadDotProductAttention_0", "MlpBlock_0", 1) if big else (
        "MultiHeadDotProductAttention_1", "MlpBlock_3", 2
    )  # fmt: skip
    a = dict(arrays)
    found = {
        "embedding/kernel": a["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": a["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": a["norm.weight"],
        "Transformer/encoder_norm/bias": a["norm.bias"],
        "head/kernel": a["head.weight"].T,
        "head/bias": a["head.bias"],
        "pos_embedding" if big else "Transformer/posembed_input/pos_embedding": a["pos_embed"],
        **({} if big else {"cls": a["cls_token"]}),
    }
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for j, part in enumerate(("query", "key", "value")):
            weight = a[f"{ours}attn.qkv.weight"][j * D : (j + 1) * D]
            found[f"{theirs}{attention}/{part}/kernel"] = weight.T.reshape(D, T, K)
            found[f"{theirs}{attention}/{part}/bias"] = a[f"{ours}attn.qkv.bias"][j * D : (j + 1) * D].reshape(T, K)
        found[f"{theirs}{attention}/out/kernel"] = a[f"{ours}attn.proj.weight"].T.reshape(T, K, D)
        found[f"{theirs}{attention}/out/bias"] = a[f"{ours}attn.proj.bias"]
        for j in (1, 2):
            n = 0 if j == 1 else norm
            found[f"{theirs}{mlp}/Dense_{j - 1}/kernel"] = a[f"{ours}mlp.fc{j}.weight"].T
            found[f"{theirs}{mlp}/Dense_{j - 1}/bias"] = a[f"{ours}mlp.fc{j}.bias"]
            found[f"{theirs}LayerNorm_{n}/scale"] = a[f"{ours}norm{j}.weight"]
            found[f"{theirs}LayerNorm_{n}/bias"] = a[f"{ours}norm{j}.bias"]
    return {f"params/{name}" if big else name: np.ascontiguousarray(array) for name, array in found.items()}


@pytest.mark.parametrize(("format", "fields"), [("google", {}), ("big_vision", MEAN)])
def test_files_of_google(format: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = SMALL.replace(activation="gelu_tanh", **fields)
    weights = checkpoint(config)
    weights = checkpoint(config, weights.arrays.as_type("float32"))
    np.savez(tmp_path / "vit.npz", **google_arrays(config, weights.arrays))
    agree(reference(tmp_path / "vit.npz", format, config), config, weights)


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        ("bonsai", {}),
        ("vit", {}),
        ("google", {"representation": 16}),
        ("google", {"stem_layers": (), "patch_size": 4}),
        ("big_vision", {**MEAN, "position_embedding": "sincos2d_big_vision"}),
        ("big_vision", {"class_token": False, "pooling": "first"}),
        ("timm", {"representation": 16}),
        ("timm", {"pooling": "cls_gap"}),
        ("timm", {"mlp": "swiglu"}),
        ("timm", {"head_dim": 5}),
    ],
    ids=str,
)
def test_none_where_no_library_has_the_model(format: str, fields: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", x=np.zeros(1, np.float32))
    assert reference(tmp_path / "vit.npz", format, SMALL.replace(**fields)) is None


@pytest.mark.parametrize("dtype", ["float64", "V2"])
def test_none_for_files_of_google_that_timm_rounds(dtype: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", x=np.zeros(1, dtype))
    assert reference(tmp_path / "vit.npz", "google", SMALL) is None


def test_a_name_or_a_value_in_the_wrong_place_shows(tmp_path: Path) -> None:
    weights = checkpoint(SMALL)
    save_checkpoint(tmp_path / "vit.pth", weights, format="torchvision")
    state = torch.load(tmp_path / "vit.pth")
    state["encoder.layers.encoder_layer_1.ln_1.weight"] *= 1 + 1e-6
    torch.save(state, tmp_path / "other.pth")
    run = reference(tmp_path / "other.pth", "torchvision", SMALL)
    assert run is not None
    x_BCHW = nchw(images(SMALL))
    found, expected = run(x_BCHW), vit_torch.load(weights)(x_BCHW).detach()
    assert parity.difference(found.numpy(), expected.numpy())[1] > parity.FLOAT64_BOUND
    state["encoder.layers.encoder_layer_1.ln_1.scale"] = state.pop("encoder.layers.encoder_layer_1.ln_1.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"torchvision itself does not open it \(.*Missing key.*ln_1\.weight") as error:
        reference(tmp_path / "other.pth", "torchvision", SMALL)
    assert "\n" not in str(error.value)


def test_an_array_that_transformers_misses_shows(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**HF), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"transformers itself does not open it as it is \(missing_keys: .*pooler"):
        reference(tmp_path, "transformers", SMALL.replace(num_classes=0, representation=24))


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    """Neither a class of its own nor one of another library's registry."""
    transformers.ViTModel(transformers.ViTConfig(**HF)).save_pretrained(tmp_path)
    (tmp_path / "modeling.py").write_text("raise SystemExit('run')")
    said = json.loads((tmp_path / "config.json").read_text())
    said["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert reference(tmp_path, "transformers", SMALL.replace(num_classes=0, representation=24)) is not None
    (tmp_path / "config.json").write_text(json.dumps({**said, "architectures": ["Trainer"]}))
    assert reference(tmp_path, "transformers", SMALL) is None


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"architectures": null}', '{"architecture": {}}'])
def test_a_broken_folder_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    for format in ("transformers", "timm"):
        with pytest.raises(InputError, match=f"{format} itself does not open it") as error:
            reference(tmp_path, format, SMALL)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("format", "module", "package"),
    [
        ("torchvision", "torchvision.models", "torchvision"),
        ("lucidrains", "vit_pytorch", "vit-pytorch"),
        ("lukemelas", "pytorch_pretrained_vit", "pytorch-pretrained-vit"),
        ("transformers", "transformers", "transformers"),
    ],
)
def test_a_library_that_is_not_installed(
    format: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({}, tmp_path / "vit.pth")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"{module} is missing: pip install {package}"):
        reference(tmp_path / "vit.pth", format, SMALL)


def test_the_random_state_and_the_terminal_are_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.ViTModel(transformers.ViTConfig(**HF)).save_pretrained(tmp_path)
    capfd.readouterr()
    before = torch.get_rng_state()
    reference(tmp_path, "transformers", SMALL.replace(num_classes=0, representation=24))
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
