"""Finds the model type of a checkpoint of transformers, which decides how its arrays and its config.json are read."""

from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.transformers.config_json import Shapes, shown
from vit_core.checkpoints.formats.transformers.names import FAMILIES, TOWER_OF
from vit_core.errors import InputError


def model_type_of(source: Source, shapes: Shapes) -> str:
    """The model type, by config.json or the names of arrays. Raises InputError for one that cannot be read."""
    said = source.config.get("model_type")
    if said is None:
        beit = "data2vec-vision" if any(name.startswith("data2vec_vision.") for name in shapes) else "beit"
        telling = {
            "embeddings.rms_norm.weight": "aimv2_vision_model",
            ".attention.projection_layer.weight": "internvl_vision",
            ".lambda_1": beit,
            "pooler.layernorm.weight": beit,
            "_position_bias.relative_position_bias_table": beit,
            "embeddings.patch_embeddings.weight": "dinov3_vit",
            "embeddings.class_embedding": "clip_vision_model",
            "embeddings.patch_embedding.weight": "siglip_vision_model",
            "embeddings.register_tokens": "dinov2_with_registers",
            ".layer_scale1.lambda1": "dinov2",
            "embeddings.distillation_token": "deit",
        }
        told = next((kind for end, kind in telling.items() if any(name.endswith(end) for name in shapes)), None)
        if told == "siglip_vision_model" and _is_patch_matrix(shapes):
            return "siglip2_vision_model"
        has_class_token = any(name.endswith("embeddings.cls_token") for name in shapes)
        return told or ("vit" if has_class_token else "ijepa")
    model_type = TOWER_OF.get(said, said) if isinstance(said, str) else None
    if model_type not in FAMILIES:
        raise InputError(f"{source.path}: config.json states model_type {shown(said)}, {_next_step(source)}")
    return model_type


def _next_step(source: Source) -> str:
    """What the user can do with a model type that cannot be read but may contain an image tower that can."""
    read = f"model types of transformers that can be read: {', '.join([*FAMILIES, *TOWER_OF])}"
    inner = source.config.get("vision_config")
    tower = inner.get("model_type") if isinstance(inner, dict) else None
    if tower not in FAMILIES and tower not in TOWER_OF:
        own = "if it is a class of your own around a model of timm, use --from timm"
        return f"which cannot be read; {read}; {own}"
    module = ".".join(source.prefix)
    where = f" ('{module}')" if module else ""
    return (
        f"which cannot be read; its image tower, a {tower}, can be: save only that module{where} with its "
        "save_pretrained(FOLDER) and give that folder"
    )


def _is_patch_matrix(shapes: Shapes) -> bool:
    return any(name.endswith("embeddings.patch_embedding.weight") and len(shapes[name]) == 2 for name in shapes)
