"""A written checkpoint opened in the library it was written for: what `vit convert` holds our model against.

The libraries are imported when asked for. Nothing is downloaded, and no code comes from a file: a folder's config.json
chooses among the architectures that timm or transformers have registered, the latter's from the table below.
"""

import contextlib
import importlib
import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.config import ViTConfig
from vit_core.containers import open_container
from vit_core.errors import InputError
from vit_core.formats import lucidrains, torchvision


class NotInstalled(InputError):
    """The library that a format belongs to is not there."""


Reference = Callable[[Tensor], Tensor]

# fmt: off
_TRANSFORMERS = (
    "ViTForImageClassification", "ViTModel",
    "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel",
    "Dinov2ForImageClassification", "Dinov2Model",
    "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel",
    "SiglipForImageClassification", "SiglipVisionModel",
    "CLIPVisionModel", "CLIPVisionModelWithProjection",
)
# fmt: on


def reference(path: Path, format: str, model: ViTConfig) -> Reference | None:
    """Images [B, C, H, W] in float64 to logits (features, where there is no head), by the format's own library.

    model: the config that the checkpoint at `path` has. None where no library has such a model, or none loads such a
    file. Raises NotInstalled where the library is missing, InputError where it does not open what is there.
    """
    if format not in _OPENERS:
        return None
    library, open_with = _OPENERS[format]
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):  # initial values, progress
            opened = open_with(path, model)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise NotInstalled(f"to compare with {library}, {error.name} is missing: pip install {library}") from None
    except Exception as error:  # each library has its own words for what it cannot open
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{path}: {library} itself does not open it ({said})") from None
    return None if opened is None else torch.no_grad()(lambda x_BCHW: opened(x_BCHW.double()))


def _timm(path: Path, model: ViTConfig) -> Reference | None:
    if path.is_dir():
        timm = importlib.import_module("timm")
        return timm.create_model(f"local-dir:{path}", pretrained=True).double().eval()
    return _loaded(path, lambda: _timm_model(model)) if _has(model, _IN_TIMM) else None


def _npz(path: Path, model: ViTConfig) -> Reference | None:
    """By timm's own loader of Google's files, which rounds patch projections to float32."""
    kinds = {entry.dtype for entry in open_container(path).arrays.entries.values()}
    if kinds != {"float32"} or not _has(model, _IN_TIMM | _IN_NPZ):
        return None
    theirs = _timm_model(model).double().eval()
    theirs.load_pretrained(str(path))
    return theirs


_POOLS = {"cls": "token", "gap": "avg", "map": "map"}
_IN_TIMM: dict[str, tuple[Any, ...]] = {
    "mlp": ("mlp",),
    "distillation": ("none",),
    "patch_norms": (False,),
    "head_bias": (True,),
    **dict.fromkeys(("representation", "stem_layers", "head_dim"), (None,)),
    "pooling": tuple(_POOLS),
    "position_embedding": ("learned", "none"),
}
"""What timm's VisionTransformer is built for here. (Its hybrids have other epsilons than Google's.)"""
_IN_NPZ: dict[str, tuple[Any, ...]] = {
    "channels": (1, 3),
    "position_embedding": ("learned",),
    "final_norm": ("before_pooling",),
    "registers": (0,),
    "layer_scale": (None,),
    **dict.fromkeys(("qkv_bias", "proj_bias", "patch_bias"), (True,)),
    **dict.fromkeys(("pre_norm", "qk_norm"), (False,)),
}
"""What its loader takes for granted."""


def _has(model: ViTConfig, fields: Mapping[str, tuple[Any, ...]]) -> bool:
    coupled = model.patch_bias is not model.pre_norm
    return coupled and all(getattr(model, name) in values for name, values in fields.items())


def _timm_model(model: ViTConfig) -> Any:
    return importlib.import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        in_chans=model.channels,
        num_classes=model.num_classes,
        global_pool=_POOLS[model.pooling],
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        mlp_ratio=(model.mlp_dim + 0.5) / model.width,  # timm rounds the product down
        qkv_bias=model.qkv_bias,
        qk_norm=model.qk_norm,
        proj_bias=model.proj_bias,
        init_values=model.layer_scale,
        class_token=model.class_token,
        pos_embed="learn" if model.position_embedding == "learned" else "none",
        no_embed_class=not model.class_token_position,
        reg_tokens=model.registers,
        pre_norm=model.pre_norm,
        fc_norm=model.final_norm == "after_pooling",
        norm_layer=partial(nn.LayerNorm, eps=model.norm_epsilon),
        act_layer=model.activation,
    )


def _torchvision(path: Path, model: ViTConfig) -> Reference:
    def build() -> Any:
        theirs = importlib.import_module("torchvision.models").VisionTransformer(**torchvision.arguments(model))
        if not model.num_classes:
            owner, part = (theirs.heads, "head") if model.representation else (theirs, "heads")
            setattr(owner, part, nn.Identity())
        return theirs

    return _loaded(path, build)


def _lucidrains(path: Path, model: ViTConfig) -> Reference:
    theirs = _loaded(path, lambda: importlib.import_module("vit_pytorch").ViT(**lucidrains.arguments(model)))
    if model.num_classes:
        return theirs
    return lambda x_BCHW: _pooled(theirs(x_BCHW), model)  # without a head it gives all tokens


def _loaded(path: Path, build: Callable[[], Any]) -> Any:
    """With the state dict of a file, every name of which has its place, and every place its name."""
    if path.suffix == ".safetensors":
        state = importlib.import_module("safetensors.torch").load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        theirs = build()
    theirs.load_state_dict(state, strict=True, assign=True)
    return theirs.double().eval()


def _transformers(path: Path, model: ViTConfig) -> Reference | None:
    transformers = importlib.import_module("transformers")
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    if name not in _TRANSFORMERS:
        return None
    options: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "sdpa", "output_loading_info": True}
    if name in ("ViTModel", "DeiTModel"):
        options["add_pooling_layer"] = bool(model.representation)
    theirs, info = getattr(transformers, name).from_pretrained(
        path, local_files_only=True, trust_remote_code=False, **options
    )
    if wrong := [f"{what}: {sorted(map(str, names))[:3]}" for what, names in info.items() if names]:
        raise InputError(f"{path}: transformers itself does not open it as it is ({'; '.join(wrong)})")
    # CLIP's norm stands after its pooling, as SigLIP's MAP head does.
    own_pooling = bool(model.representation) or model.pooling == "map" or name.startswith("CLIP")

    def outputs(x_BCHW: Tensor) -> Tensor:
        found = theirs.eval()(pixel_values=x_BCHW)
        output = next((x for x in (found.get("logits"), found.get("image_embeds")) if x is not None), None)
        if output is not None:
            return output
        return found.pooler_output if own_pooling else _pooled(found.last_hidden_state, model)

    return outputs


def _pooled(x_BND: Tensor, model: ViTConfig) -> Tensor:
    mean_BD = x_BND[:, model.prefix_tokens :].mean(dim=1)
    return {"cls": x_BND[:, 0], "gap": mean_BD, "cls_gap": torch.cat([x_BND[:, 0], mean_BD], dim=1)}[model.pooling]


_OPENERS: dict[str, tuple[str, Callable[[Path, ViTConfig], Reference | None]]] = {
    "timm": ("timm", _timm),
    "transformers": ("transformers", _transformers),
    "torchvision": ("torchvision", _torchvision),
    "google": ("timm", _npz),
    "big_vision": ("timm", _npz),
    "lucidrains": ("vit-pytorch", _lucidrains),
}
"""Format -> the package that is installed, and how it opens a file."""
