"""Hugging Face transformers' own models with random weights, what they compute, and how they are saved and opened.

Nothing is downloaded. Attention is sdpa: their eager attention casts the softmax to float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import vit_torch
from vit_core import ViTConfig, parity
from vit_core.checkpoints.checkpoint import Checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4
}  # fmt: skip
MLP: dict[str, Any] = {"intermediate_size": 48}
TEXT: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
    "projection_dim": 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FIVE = {"num_labels": 5}
SDPA = {"attn_implementation": "sdpa"}

# What ours says for each family.
SMALL = ViTConfig(
    image_size=16,
    patch_size=4,
    width=32,
    depth=2,
    heads=4,
    mlp_dim=64,
    num_classes=5,
    activation="gelu",
    norm_epsilon=1e-12,
    position_resampling="bicubic",
)
SINCOS = {"position_embedding": "sincos2d_big_vision"}
NO_TOKEN: dict[str, Any] = {"class_token": False, "class_token_position": None}
DINOV2 = {"layer_scale": 0.5, "norm_epsilon": 1e-6}
SIGLIP = {**NO_TOKEN, "activation": "gelu_tanh"}
CLIP = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_epsilon": 1e-5}


def vit(**fields: Any) -> hf.ViTConfig:
    return hf.ViTConfig(**{**SIZES, **MLP, **FIVE, **fields}, **SDPA)


def deit(**fields: Any) -> hf.DeiTConfig:
    return hf.DeiTConfig(**{**SIZES, **MLP, **FIVE, **fields}, **SDPA)


def mae(**fields: Any) -> hf.ViTMAEConfig:
    """Masks nothing."""
    decoder = {
        "decoder_hidden_size": 8, "decoder_intermediate_size": 8, "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
    }  # fmt: skip
    return hf.ViTMAEConfig(**{**SIZES, **MLP, **decoder, "mask_ratio": 0.0, **fields}, **SDPA)


def dinov2(**fields: Any) -> hf.Dinov2Config:
    return hf.Dinov2Config(**{**SIZES, "mlp_ratio": 2, **FIVE, **fields}, **SDPA)


def registers(**fields: Any) -> hf.Dinov2WithRegistersConfig:
    return hf.Dinov2WithRegistersConfig(**{**SIZES, "mlp_ratio": 2, "num_register_tokens": 3, **FIVE, **fields}, **SDPA)


def siglip(**fields: Any) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**{**SIZES, **MLP, **fields}, **SDPA)


def clip(**fields: Any) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**{**SIZES, **MLP, "projection_dim": 5, **fields}, **SDPA)


def siglip_and_text(**fields: Any) -> hf.SiglipConfig:
    return hf.SiglipConfig(vision_config=siglip().to_dict(), text_config=TEXT, **fields, **SDPA)


def clip_and_text(**fields: Any) -> hf.CLIPConfig:
    return hf.CLIPConfig(vision_config=clip().to_dict(), text_config=TEXT, **{"projection_dim": 5, **fields}, **SDPA)


def of(model: Any, config: Callable[..., Any], *, pooled: bool | None = None, **fields: Any) -> Callable[[], nn.Module]:
    """Makes their model; `pooled` goes to its constructor."""
    options = {} if pooled is None else {"add_pooling_layer": pooled}
    return lambda: model(config(**fields), **options)


CASES: dict[str, Callable[[], nn.Module]] = {
    "ViTForImageClassification": of(hf.ViTForImageClassification, vit),
    "ViT: tanh gelu": of(hf.ViTForImageClassification, vit, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3),
    "ViT: gelu_new": of(hf.ViTForImageClassification, vit, hidden_act="gelu_new"),
    "ViT: gelu_fast": of(hf.ViTForImageClassification, vit, hidden_act="gelu_fast"),
    "ViT: gelu_accurate": of(hf.ViTForImageClassification, vit, hidden_act="gelu_accurate"),
    "ViT: quick_gelu": of(hf.ViTForImageClassification, vit, hidden_act="quick_gelu"),
    "ViT: no qkv bias": of(hf.ViTForImageClassification, vit, qkv_bias=False),
    "ViT: not square": of(hf.ViTForImageClassification, vit, image_size=(8, 12), patch_size=(4, 2)),
    "ViT: one channel": of(hf.ViTForImageClassification, vit, num_channels=1),
    "ViT: no labels": of(hf.ViTForImageClassification, vit, num_labels=0),
    "ViT: two labels": of(hf.ViTForImageClassification, vit, num_labels=2),
    "ViTModel": of(hf.ViTModel, vit),
    "ViTModel: wide pooler": of(hf.ViTModel, vit, pooler_output_size=48),
    "ViTModel: no pooler": of(hf.ViTModel, vit, pooled=False),
    "ViTForMaskedImageModeling": of(hf.ViTForMaskedImageModeling, vit),
    "DeiTModel": of(hf.DeiTModel, deit),
    "DeiTModel: no pooler": of(hf.DeiTModel, deit, pooled=False),
    "DeiTForImageClassification": of(hf.DeiTForImageClassification, deit),
    "DeiTForImageClassificationWithTeacher": of(hf.DeiTForImageClassificationWithTeacher, deit, patch_size=(4, 2)),
    "DeiT, teacher: no labels": of(hf.DeiTForImageClassificationWithTeacher, deit, num_labels=0),
    "ViTMAEModel": of(hf.ViTMAEModel, mae),
    "ViTMAEForPreTraining": of(hf.ViTMAEForPreTraining, mae),
    "Dinov2Model": of(hf.Dinov2Model, dinov2, layerscale_value=0.5),
    "Dinov2ForImageClassification": of(hf.Dinov2ForImageClassification, dinov2),
    "Dinov2: swiglu": of(hf.Dinov2ForImageClassification, dinov2, use_swiglu_ffn=True, qkv_bias=False),
    "Dinov2: not square": of(hf.Dinov2ForImageClassification, dinov2, patch_size=(4, 2)),
    "Dinov2: no labels": of(hf.Dinov2ForImageClassification, dinov2, num_labels=0),
    "Dinov2Backbone": of(hf.Dinov2Backbone, dinov2, reshape_hidden_states=False),
    "Dinov2WithRegistersModel": of(hf.Dinov2WithRegistersModel, registers),
    "Dinov2WithRegistersForImageClassification": of(
        hf.Dinov2WithRegistersForImageClassification, registers, use_swiglu_ffn=True
    ),
    "SiglipVisionModel": of(hf.SiglipVisionModel, siglip),
    "SiglipVisionModel: no head": of(hf.SiglipVisionModel, siglip, vision_use_head=False),
    "SiglipModel": of(hf.SiglipModel, siglip_and_text),
    "SiglipForImageClassification": of(hf.SiglipForImageClassification, siglip_and_text, **FIVE),
    "CLIPVisionModel": of(hf.CLIPVisionModel, clip),
    "CLIPVisionModelWithProjection": of(hf.CLIPVisionModelWithProjection, clip, hidden_act="gelu"),
    "CLIPModel": of(hf.CLIPModel, clip_and_text),
}
_TOWERS = ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model")
_SCALES = ("lambda1", "norm.weight", "norm1.weight", "norm2.weight", "before.weight", "after.weight")


def random_model(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Their model, with every parameter random: matrices keep the scale of their inputs, scales lie about one."""
    torch.manual_seed(len(case))
    model = CASES[case]().to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sample = torch.randn(parameter.shape, dtype=dtype)
            if parameter.ndim > 1 and name.endswith("weight") and "embedding.weight" not in name:
                parameter.copy_(sample / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(1 + 0.3 * sample if name.endswith(_SCALES) else 0.5 * sample)
    return model


def saved(case: str, folder: Path, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Their model, and the folder that it saves."""
    model = random_model(case, dtype)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def their_tokens(model: Any, x_BCHW: Tensor, **options: Any) -> Any:
    """What the image tower gives: last_hidden_state and, where it has one, pooler_output."""
    tower = next((getattr(model, name) for name in _TOWERS if hasattr(model, name)), model)
    if isinstance(tower, hf.ViTMAEModel):  # masks nothing, and leaves the order as it is
        patches = x_BCHW.shape[2] * x_BCHW.shape[3] // 16
        options["noise"] = torch.arange(patches, dtype=torch.float64).expand(len(x_BCHW), -1)
    return tower(x_BCHW, **options)


@torch.no_grad()
def their_output(model: Any, x_BCHW: Tensor, **options: Any) -> np.ndarray:
    """What our model of it gives: logits, the projected image, what is pooled, or the class token."""
    if isinstance(model, hf.Dinov2Backbone):
        return model(x_BCHW).feature_maps[-1][:, 0].numpy()
    if isinstance(model, hf.CLIPModel | hf.CLIPVisionModelWithProjection):
        return model.visual_projection(their_tokens(model, x_BCHW, **options).pooler_output).numpy()
    if hasattr(model, "classifier") or hasattr(model, "cls_classifier"):
        return model(x_BCHW, **options).logits.numpy()
    out = their_tokens(model, x_BCHW, **options)
    if getattr(out, "pooler_output", None) is not None:
        return out.pooler_output.numpy()
    tokens_BND = out.last_hidden_state
    return (tokens_BND.mean(1) if isinstance(model, hf.SiglipVisionModel) else tokens_BND[:, 0]).numpy()


def images(config: ViTConfig, image_size: tuple[int, int] | None = None) -> tuple[np.ndarray, Tensor]:
    x_BHWC = parity.probe(config, 1, image_size=image_size)[0]
    return x_BHWC, torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)


def our_output(opened: Checkpoint, x_BCHW: Tensor, dtype: str = "float64", **options: Any) -> np.ndarray:
    with torch.no_grad():
        return vit_torch.load(opened, dtype=dtype)(x_BCHW, **options).numpy()


def opened_there(folder: Path) -> Any:
    """By the class that config.json names; every array used, none missing, none of another shape."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(hf, architecture).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def short(name: str) -> str:
    """Without the tower's prefix."""
    return next((name.removeprefix(f"{tower}.") for tower in _TOWERS if name.startswith(f"{tower}.")), name)


def assert_close(ours: np.ndarray, theirs: np.ndarray, bound: float = parity.FLOAT64_BOUND) -> None:
    assert ours.shape == theirs.shape
    assert parity.difference(ours, theirs)[1] <= bound


def bits(arrays: Any) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {name: (arrays[name].shape, str(arrays[name].dtype), arrays[name].tobytes()) for name in arrays}
