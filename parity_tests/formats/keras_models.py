"""Builds models of keras_hub with random weights, and records their files and outputs for the tests.

keras_hub cannot be a test dependency, because its package requires TensorFlow. The recorded files are in
`keras_files.zip`; this script writes them anew, in an environment of its own with keras, jax, h5py, kagglehub,
tokenizers and (without its other dependencies) keras_hub 0.32:

    KERAS_BACKEND=jax python parity_tests/formats/keras_models.py

Everything is float64, so that outputs can be compared at the precision of float64.
"""

import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILES = Path(__file__).parent / "keras_files.zip"
OUTPUTS = "outputs.npz"


def extract(folder: Path) -> Path:
    """Writes the recorded files to a folder, and returns it."""
    with zipfile.ZipFile(FILES) as archive:
        archive.extractall(folder)
    return folder


@dataclass(frozen=True)
class Recorded:
    """A model of which the files and outputs are recorded."""

    family: str
    backbone: Mapping[str, Any]
    """The arguments of its class."""
    kind: str
    """"preset", "weights", "sharded" or "archive"."""
    task: Mapping[str, Any] | None = None
    """The arguments of its classifier, or of the class of both towers; None for a backbone or a tower alone."""
    converter: Mapping[str, Any] | None = None
    """Those of its image converter."""

    def path(self, folder: Path, name: str) -> Path:
        """The path of its file or folder."""
        extensions = {"preset": "", "weights": ".weights.h5", "sharded": ".weights.json", "archive": ".keras"}
        return folder / f"{name}{extensions[self.kind]}"


TOWERS = ("SigLIP", "CLIP")
"""Families whose image encoder is a class of its own, which their backbone has beside a text encoder."""
_TEXT: dict[str, Any] = {
    "vocabulary_size": 4,
    "embedding_dim": 16,
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 1,
    "intermediate_dim": 8,
    "max_sequence_length": 2,
}
_SMALL: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
_VIT = {**_SMALL, "mlp_dim": 24, "image_shape": (8, 8, 3), "patch_size": (4, 4)}
_DINO = {**_SMALL, "patch_size": 4, "intermediate_dim": 24, "image_shape": (8, 8, 3)}
_PIXELS = {"image_size": (8, 12), "scale": 1 / 127.5, "offset": -1.0, "interpolation": "bicubic"}
_FEW_BIASES = {"use_mha_bias": False, "use_patch_bias": False, "use_class_token": False}
RECORDED = {
    "vit": Recorded(
        "ViT",
        {**_VIT, "image_shape": (8, 12, 3), "layer_norm_epsilon": 1e-3},
        "preset",
        {"num_classes": 3, "intermediate_dim": 6, "activation": "softmax"},
        _PIXELS,
    ),
    "vit_few_biases": Recorded("ViT", {**_VIT, **_FEW_BIASES}, "weights", {"num_classes": 3, "pooling": "gap"}),
    "vit_archive": Recorded("ViT", {**_VIT, "image_shape": (8, 8, 1)}, "archive", {"num_classes": 3, "pooling": "gap"}),
    "deit": Recorded(
        "DeiT",
        {**_SMALL, "intermediate_dim": 24, "image_shape": (8, 8, 3), "patch_size": 4, "use_mha_bias": False},
        "preset",
        {"num_classes": 3},
    ),
    "dinov2": Recorded(
        "DINOV2", {**_DINO, "position_embedding_shape": (12, 12, 3), "num_register_tokens": 2}, "preset"
    ),
    "dinov2_gated": Recorded(
        "DINOV2",
        {**_DINO, "position_embedding_shape": (8, 8, 3), "use_swiglu_ffn": True, "use_mask_token": False},
        "sharded",
    ),
    "dinov3": Recorded(
        "DINOV3",
        {**_DINO, "image_shape": (8, 12, 3), "num_register_tokens": 1, "use_key_bias": False, "rope_theta": 50.0},
        "preset",
    ),
    "dinov3_gated": Recorded(
        "DINOV3",
        {
            **_DINO,
            "use_gated_mlp": True,
            "hidden_activation": "silu",
            "use_query_bias": False,
            "use_mlp_bias": False,
            "layer_norm_eps": 1e-4,
        },
        "preset",
    ),
    "siglip": Recorded("SigLIP", _DINO, "preset", {}),
    "siglip_tower": Recorded("SigLIP", {**_DINO, "intermediate_activation": "gelu"}, "preset"),
    "clip": Recorded("CLIP", _DINO, "preset", {"projection_dim": 5}),
    "clip_tower": Recorded("CLIP", _DINO, "weights"),  # with its positions in another order
}
STEP = 2.0**-7
"""Weights are multiples of this number, so that the recorded files are small when compressed."""
SHARD = 2.0**-15
"""Maximum size of a file of sharded weights, in GiB: 32 KiB."""


def build(recorded: Recorded) -> Any:
    """A model of keras_hub: a backbone, a classifier, an image tower, or both towers."""
    import keras_hub

    family, images = recorded.family, None
    if family in TOWERS:
        tower = getattr(keras_hub.models, f"{family}VisionEncoder")(**recorded.backbone)
        if recorded.task is None:
            return tower
        text = getattr(keras_hub.models, f"{family}TextEncoder")(**_TEXT)
        return getattr(keras_hub.models, f"{family}Backbone")(tower, text, **recorded.task)
    model = getattr(keras_hub.models, f"{family}Backbone")(**recorded.backbone)
    if recorded.converter is not None:
        converter = getattr(keras_hub.layers, f"{family}ImageConverter")(**recorded.converter)
        images = getattr(keras_hub.models, f"{family}ImageClassifierPreprocessor")(image_converter=converter)
    if recorded.task is not None:
        task = getattr(keras_hub.models, f"{family}ImageClassifier")
        model = task(backbone=model, preprocessor=images, **recorded.task)
    return model


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Sets every weight to random values. DINOv2's positions for the image size are computed from the table, as when
    Keras loads a file. The numbers of CLIP's positions, which its class sets to 0, are counted as in released models,
    but for a tower alone from the last to the first."""
    if type(model).__name__ in ("CLIPVisionEncoder", "CLIPBackbone"):
        ids = getattr(model, "vision_encoder", model).embedding.position_ids
        count = np.arange(ids.shape[1])[None]
        ids.assign(count if hasattr(model, "vision_encoder") else count[:, ::-1])
    for variable in model.weights:
        if "seed" not in variable.path and "optimizer" not in variable.path and "float" in variable.dtype:
            around = 1.0 if variable.path.endswith(("gamma", "lambda1")) else 0.0
            variable.assign(around + np.round(rng.normal(0.0, 0.3, variable.shape) / STEP) * STEP)
    if type(model).__name__ == "DINOV2Backbone":
        layer = model.embeddings
        shapes = {"source_shape": layer.position_embedding_shape, "target_shape": layer.image_shape}
        layer.interpolated_position_embeddings.assign(
            layer._interpolate_position_embeddings(
                layer.position_embeddings, layer.patch_size, antialias=layer.antialias_in_interpolation, **shapes
            )
        )


def save(model: Any, kind: str, path: Path) -> None:
    """Saves a model as a preset, as weights, as sharded weights or as an archive."""
    if kind == "preset":
        model.save_to_preset(str(path))
    elif kind == "archive":
        model.save(str(path))
    else:
        model.save_weights(str(path), **({"max_shard_size": SHARD} if kind == "sharded" else {}))


def images_for(backbone: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Two random images [2, H, W, C]."""
    return rng.uniform(-1.0, 1.0, (2, *backbone["image_shape"]))


def outputs_of(model: Any, images_BHWC: np.ndarray) -> np.ndarray:
    """The logits, before the activation of the head; all tokens of a backbone; the embedding of an image."""
    if hasattr(model, "output_dense"):
        import keras

        model.output_dense.activation = keras.activations.linear
    if hasattr(model, "get_vision_embeddings"):
        return np.asarray(model.get_vision_embeddings(images_BHWC))
    inputs = {next(iter(model.input)): images_BHWC} if isinstance(model.input, dict) else images_BHWC
    return np.asarray(model(inputs))


def use_float64() -> None:
    """Makes Keras compute in float64. Its norms and its attention otherwise use float32, whatever the type of a model
    is: both functions are replaced here."""
    import jax
    import keras

    before = keras.src.backend.result_type
    for module in list(sys.modules.values()):
        if getattr(module, "result_type", None) is before:
            module.result_type = lambda *types: "float64" if "float64" in map(str, types) else before(*types)

    def attention(query: Any, key: Any, value: Any, scale: float | None = None, **options: Any) -> Any:
        assert not any(value is not None and value is not False for value in options.values()), options
        ops, size = keras.ops, query.shape[-1]
        logits = ops.einsum("BTNH,BSNH->BNTS", query, key) * (size**-0.5 if scale is None else scale)
        weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
        return ops.einsum("BNTS,BSNH->BTNH", weights / ops.sum(weights, axis=-1, keepdims=True), value)

    keras.src.backend.nn.dot_product_attention = attention
    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def record(folder: Path) -> None:
    """Writes all files and outputs anew. folder: an empty folder for them."""
    outputs = {}
    for seed, (name, recorded) in enumerate(RECORDED.items()):
        rng = np.random.default_rng(seed)
        model = build(recorded)
        randomise(model, rng)
        save(model, recorded.kind, recorded.path(folder, name))
        images = images_for(recorded.backbone, rng)
        outputs |= {f"{name}.images": images, f"{name}.outputs": outputs_of(model, images)}
    np.savez(folder / OUTPUTS, **outputs)
    with zipfile.ZipFile(FILES, "w", zipfile.ZIP_LZMA) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "jax"
    use_float64()
    with tempfile.TemporaryDirectory() as temporary:
        record(Path(temporary))
