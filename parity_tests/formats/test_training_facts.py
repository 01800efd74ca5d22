"""Facts beside weights of no architecture that is known by name: taken where the arrays agree, said where they do not.

The reference is timm's own class, of an oblong grid and with heads that no rule guesses.
"""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from parity_tests.formats.foreign import assumed, images, largest_difference, nchw, opened, randomized
from vit_core import parity
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.errors import InputError

OBLONG: dict[str, Any] = {"img_size": (8, 32), "num_heads": 3}
SIZES: dict[str, Any] = {**OBLONG, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_classes": 5}
NAMES = ["ant", "bee", "cat", "dog", "elk"]


def model(**options: Any) -> Any:
    return randomized(VisionTransformer(**{**SIZES, **options}))


def saved(folder: Path, beside: dict[str, Any], **options: Any) -> Path:
    state = {f"net.{name}": x for name, x in model(**options).state_dict().items()}
    torch.save({"state_dict": state, **beside}, folder / "last.ckpt")
    return folder / "last.ckpt"


def assert_same(found: Checkpoint, **options: Any) -> None:
    with torch.no_grad():
        expected = model(**options)(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


HEARD: dict[str, dict[str, Any]] = {
    "Lightning": {"hyper_parameters": OBLONG},
    "other names": {"hyper_parameters": {"image_size": [8, 32], "heads": 3}},
    "channels first": {"hyper_parameters": {"input_size": (3, 8, 32), "n_heads": 3}},
    "text": {"args": {"img_size": "8x32", "num_heads": "3"}},
    "arrays": {"hyper_parameters": {"img_size": np.array([8, 32]), "num_heads": torch.tensor(3)}},
    "a namespace": {"args": Namespace(**OBLONG)},
    "nested": {"config": {"model": {"encoder": OBLONG}, "data": {"workers": 2}}},
    "beside a text model": {"config": {"text": {"num_heads": 8}, "vision": OBLONG}},
    "the outermost": {"hparams": {**OBLONG, "old": {"img_size": 16, "num_heads": 4}}},
}


@pytest.mark.parametrize("case", HEARD)
def test_what_no_array_shows(case: str, tmp_path: Path) -> None:
    found = opened(saved(tmp_path, HEARD[case]))
    assert_same(found)
    assert not {"image_size", "heads"} & set(assumed(found))
    key = next(iter(HEARD[case]))
    assert len([note for note in found.notes if f": stated by {key}: " in note]) == 2
    assert not [note for note in found.notes if note.startswith("left out") and key in note]


def test_pooling(tmp_path: Path) -> None:
    """The mean with a norm before it, which has the names of a class token's model."""
    gap = {"global_pool": "avg", "fc_norm": False}
    stated = {"hyper_parameters": {**OBLONG, "global_pool": "avg"}}
    assert_same(opened(saved(tmp_path, stated, **gap)), **gap)


@pytest.mark.parametrize(
    ("key", "stated"),
    [
        ("hyper_parameters", {"pool": "max"}),
        ("hyper_parameters", {"model_name": "vit_tiny_patch16_224", "pool": "max"}),
        ("args", Namespace(model="vit_tiny_patch16_224", global_pool="avgmax")),
        ("args", Namespace(model="vit_tiny_patch16_224", gp="max")),
        ("args", Namespace(model="vit_tiny_patch16_224", model_kwargs={"global_pool": "max"})),
    ],
    ids=str,
)
def test_another_pooling_is_refused(key: str, stated: Any, tmp_path: Path) -> None:
    """By the name of its place, and unless the user says that it is of something else."""
    path = saved(tmp_path, {key: stated}, img_size=16)
    with pytest.raises(
        InputError, match=rf"{key}: \w+ states the pooling '\w*max', which ViTConfig cannot express; if"
    ):
        opened(path)
    assert opened(path, pooling="cls").config.model.pooling == "cls"


def test_a_pooling_of_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(model(global_pool="max"), tmp_path / "x.pt")
    with pytest.raises(InputError, match="attributes of modules: global_pool states the pooling 'max'"):
        opened(tmp_path / "x.pt")


def test_heads_of_another_module_beside_an_architecture(tmp_path: Path) -> None:
    """The architecture's are assumed; those of a pickled model are its own."""
    tiny: dict[str, Any] = {"img_size": 16, "embed_dim": 192, "num_heads": 3, "mlp_ratio": 4}
    named = {"model_name": "vit_tiny_patch16_224", "num_heads": 4}
    found = opened(saved(tmp_path, {"hyper_parameters": named}, **tiny))
    assert_same(found, **tiny)
    assert any("hyper_parameters: num_heads states 4; --set heads=4" in note for note in found.notes)
    torch.save({"model": model(**tiny | {"num_heads": 6}), "args": named}, tmp_path / "x.pt")
    assert_same(opened(tmp_path / "x.pt"), **tiny | {"num_heads": 6})


def test_the_metadata_of_safetensors(tmp_path: Path) -> None:
    """Values are text there, and so is a whole config."""
    for metadata in ({"img_size": "[8, 32]", "num_heads": "3"}, {"config": json.dumps(OBLONG), "format": "pt"}):
        save_file(model().state_dict(), tmp_path / "model.safetensors", metadata)
        assert_same(opened(tmp_path / "model.safetensors"))


def test_the_user_comes_first(tmp_path: Path) -> None:
    found = opened(saved(tmp_path, {"hyper_parameters": OBLONG}), image_size=16, heads=4)
    assert (found.config.model.image_size, found.config.model.heads) == ((16, 16), 4)


CONTRADICTED: dict[str, tuple[dict[str, Any], str]] = {
    "image size": (
        {"img_size": 224},
        "img_size states image_size=224x224, ignored because the arrays contradict it (pos_embed has 17",
    ),
    "heads": (
        {"num_heads": 5},
        "num_heads states heads=5, ignored because the arrays contradict it (5 does not divide width 24",
    ),
    "classes": ({"num_classes": 10}, "num_classes states num_classes=10, but the arrays have num_classes=5"),
    "patches": ({"patch_size": 16}, "patch_size states patch_size=16x16, but the arrays have patch_size=4x4"),
    "width": ({"embed_dim": 48}, "embed_dim states width=48, but the arrays have width=24"),
}


@pytest.mark.parametrize("case", CONTRADICTED)
def test_a_contradiction_is_named(case: str, tmp_path: Path) -> None:
    """In one line; the other facts are still heard."""
    stated, message = CONTRADICTED[case]
    found = opened(saved(tmp_path, {"hyper_parameters": {**OBLONG, **stated}}))
    assert len([note for note in found.notes if f"hyper_parameters: {message}" in note]) == 1
    assert ("heads" in assumed(found)) == (case == "heads")


def test_two_values_for_one_fact(tmp_path: Path) -> None:
    """Neither is taken."""
    found = opened(saved(tmp_path, {"config": {"a": {"num_heads": 3}, "b": {"num_heads": 4}}}))
    assert "heads" in assumed(found)


@pytest.mark.parametrize("other", ["head", "fusion", "text_model", "loss"])
def test_facts_about_another_module(other: str, tmp_path: Path) -> None:
    found = opened(saved(tmp_path, {"hyper_parameters": {other: {"num_heads": 4, "pooling": "mean"}}}))
    assert "heads" in assumed(found)
    assert found.config.model.pooling == "cls"


def test_a_hostile_text(tmp_path: Path) -> None:
    opened(saved(tmp_path, {"hyper_parameters": {"img_size": "[" * 100_000, "num_heads": "1" * 100_000}}))


def test_a_grid_that_is_no_square_opens_by_its_facts(tmp_path: Path) -> None:
    """4 x 10 patches and a class token: no square with or without it."""
    options = {"img_size": (16, 40)}
    with pytest.raises(InputError, match="do not form a square grid"):
        opened(saved(tmp_path, {}, **options))
    assert_same(opened(saved(tmp_path, {"hyper_parameters": {**options, "num_heads": 3}}, **options)), **options)


LABELS: dict[str, Any] = {
    "a list": {"classes": NAMES},
    "numbers": {"class_to_idx": {name: i for i, name in reversed(list(enumerate(NAMES)))}},
    "names": {"idx_to_class": dict(enumerate(NAMES))},
    "Lightning": {"hyper_parameters": {**OBLONG, "class_names": tuple(NAMES)}},
}


@pytest.mark.parametrize("case", LABELS)
def test_names_of_classes(case: str, tmp_path: Path) -> None:
    assert opened(saved(tmp_path, LABELS[case])).config.labels == tuple(NAMES)


@pytest.mark.parametrize(
    "names",
    [
        NAMES[:4],
        [*NAMES[:4], "ant"],
        [1, 2, 3, 4, 5],
        {"ant": 1, "bee": 2},
        ["a\nb", *NAMES[1:]],
        ["", *NAMES[1:]],
    ],
)
def test_what_are_no_names_of_the_classes(names: Any, tmp_path: Path) -> None:
    assert opened(saved(tmp_path, {"classes": names})).config.labels is None


def test_names_in_two_orders(tmp_path: Path) -> None:
    found = opened(saved(tmp_path, {"classes": NAMES, "class_to_idx": {name: i for i, name in enumerate(NAMES[::-1])}}))
    assert found.config.labels is None
    assert any("labels left out: classes and class_to_idx differ in names or order" in note for note in found.notes)


IMAGES: dict[str, dict[str, Any]] = {
    "Lightning": {"hyper_parameters": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.9}},
    "arrays": {"hparams": {"image_mean": np.array([0.1, 0.2, 0.3]), "image_std": torch.tensor([0.4, 0.5, 0.6])}},
    "a namespace": {"args": Namespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bilinear")},
    "Lightning's command line": {
        "hyper_parameters": {"data": {"init_args": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}}
    },
    "of bytes": {"config": {"data": {"mean": [25.5, 51.0, 76.5], "std": [102.0, 127.5, 153.0]}}},
}


@pytest.mark.parametrize("case", IMAGES)
def test_how_images_were_made(case: str, tmp_path: Path) -> None:
    (key, stated), *_ = IMAGES[case].items()
    stated = vars(stated) if isinstance(stated, Namespace) else stated
    found = opened(saved(tmp_path, IMAGES[case]), image_size=(8, 32))
    made = found.config.preprocessing
    assert made is not None
    np.testing.assert_allclose(made.mean, (0.1, 0.2, 0.3), rtol=1e-6)  # of a tensor in float32
    np.testing.assert_allclose(made.std, (0.4, 0.5, 0.6), rtol=1e-6)
    assert (made.image_size, made.crop_fraction) == ((8, 32), stated.get("crop_pct", 0.875))
    assert made.interpolation == stated.get("interpolation", "bicubic")
    (note,) = [note for note in found.notes if note.startswith(f"preprocessing: stated by {key}: ")]
    assert "assumed as in timm" in note
    assert ("crop_pct 0.875" in note) == ("crop_pct" not in stated)
    assert not [note for note in found.notes if note.startswith("left out") and key in note]


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({"mean": [0.5] * 3}, "no std is stated"),
        ({"mean": [0.5] * 3, "std": [0.5] * 2}, "std"),
        ({"mean": "imagenet", "std": "imagenet"}, "mean"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "random"}, "interpolation"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 10**400}, "preprocessing"),
        ({"mean": [10**400] * 3, "std": [1] * 3}, "the values fit neither pixels from 0 to 1 nor from 0 to 255"),
        (
            {"mean": [103.53, 116.28, 123.675], "std": [1.0] * 3},
            "the values fit neither pixels from 0 to 1 nor from 0 to 255",
        ),
        ({"mean": [True] * 3, "std": [True] * 3}, "not a list of 3 numbers"),
        ({"mean": 0.0, "std": 0.02}, "not a list of 3 numbers"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "to_rgb": False}, "blue, green, red, according to to_rgb=False"),
        (
            {"mean": [0.5] * 3, "std": [0.5] * 3, "input_format": "BGR"},
            "blue, green, red, according to input_format=BGR",
        ),
        ({"train": {"mean": [0.5] * 3, "std": [0.5] * 3}, "test": {"mean": [0.4] * 3, "std": [0.5] * 3}}, "different"),
    ],
)
def test_what_cannot_be_heard_of_images_is_named(stated: dict[str, Any], why: str, tmp_path: Path) -> None:
    found = opened(saved(tmp_path, {"hyper_parameters": stated}), image_size=(8, 32))
    assert found.config.preprocessing is None
    (note,) = [note for note in found.notes if "left out" in note and "preprocessing" in note]
    assert why in note
    assert "hyper_parameters" in note


def test_a_mean_and_a_std_are_of_one_mapping(tmp_path: Path) -> None:
    """A std of initial weights is further out."""
    stated = {"init": {"std": 0.02}, "hyper_parameters": {"data": {"mean": [0.5] * 3, "std": [0.4] * 3}}}
    made = opened(saved(tmp_path, stated), image_size=(8, 32)).config.preprocessing
    assert made is not None
    assert (made.mean, made.std) == ((0.5,) * 3, (0.4,) * 3)


@pytest.mark.parametrize(
    "stated",
    [
        {"label": {"mean": [0.5] * 3, "std": [0.4] * 3}},
        {"args": {"mean": None, "std": None, "interpolation": "", "crop_pct": 0.9}},
    ],
)
def test_nothing_is_said_where_nothing_is_stated_of_images(stated: dict[str, Any], tmp_path: Path) -> None:
    found = opened(saved(tmp_path, stated), image_size=(8, 32))
    assert found.config.preprocessing is None
    assert not [note for note in found.notes if "preprocessing" in note]


def test_buffers_that_agree_with_what_is_stated(tmp_path: Path) -> None:
    """0.3 is another number in float32."""
    path = saved(tmp_path, {"hyper_parameters": {"mean": [0.3] * 3, "std": [0.3] * 3}})
    file = torch.load(path)
    file["state_dict"] |= {f"normalize.{name}": torch.full((3,), 0.3) for name in ("mean", "std")}
    torch.save(file, path)
    found = opened(path, image_size=(8, 32))
    assert found.config.preprocessing is not None
    assert found.config.preprocessing.mean == (0.3,) * 3
    assert not [note for note in found.notes if note.startswith("left out")]


def test_buffers_of_targets_are_no_preprocessing(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    file = torch.load(path)
    file["state_dict"] |= {f"normalize_targets.{name}": torch.full((3,), 0.5) for name in ("mean", "std")}
    torch.save(file, path)
    assert opened(path, image_size=(8, 32)).config.preprocessing is None


ACTIVATIONS = {"QuickGELU": "quick_gelu", "gelu_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_without_an_architecture(name: str, tmp_path: Path) -> None:
    """As timm and transformers call the argument; timm's QuickGELU and the tanh approximation in words."""
    layer = {"quick_gelu": QuickGELU, "gelu_tanh": GELUTanh, "gelu": nn.GELU}[ACTIVATIONS[name]]
    for key in ("act_layer", "hidden_act"):
        found = opened(saved(tmp_path, {"hyper_parameters": {**OBLONG, key: name}}, act_layer=layer))
        assert_same(found, act_layer=layer)
        assert f"activation={ACTIVATIONS[name]}: stated by hyper_parameters: {key}" in found.notes


def test_a_class_as_activation(tmp_path: Path) -> None:
    """A class is kept by its name."""
    found = opened(saved(tmp_path, {"config": {**OBLONG, "act_layer": QuickGELU}}, act_layer=QuickGELU))
    assert_same(found, act_layer=QuickGELU)


@pytest.mark.parametrize(
    ("key", "name"), [("act_layer", "relu"), ("act_layer", nn.SiLU), ("hidden_act", "relu")], ids=str
)
def test_another_activation_is_refused(key: str, name: Any, tmp_path: Path) -> None:
    """Unless the user says that it is of something else."""
    path = saved(tmp_path, {"hyper_parameters": {**OBLONG, key: name}})
    with pytest.raises(InputError, match=rf"{key} states .*, which ViTConfig cannot express; .*--set activation="):
        opened(path)
    assert_same(opened(path, activation="gelu"))


def test_an_epsilon_without_an_architecture(tmp_path: Path) -> None:
    norm = partial(nn.LayerNorm, eps=1e-3)
    found = opened(saved(tmp_path, {"hyper_parameters": {**OBLONG, "layer_norm_eps": 1e-3}}, norm_layer=norm))
    assert_same(found, norm_layer=norm)
    assert "norm_epsilon=0.001: stated by hyper_parameters: layer_norm_eps" in found.notes


def test_an_activation_beside_an_architecture(tmp_path: Path) -> None:
    stated = {"hyper_parameters": {"model_name": "vit_tiny_patch16_224", **OBLONG, "act_layer": "quick_gelu"}}
    assert_same(opened(saved(tmp_path, stated, act_layer=QuickGELU)), act_layer=QuickGELU)


@pytest.mark.parametrize("name", ["gelu_new", "silu"])
def test_an_activation_of_a_model_of_other_sizes(name: str, tmp_path: Path) -> None:
    """A language model's configuration beside the image model."""
    bert = {"hidden_act": name, "layer_norm_eps": 1e-12, "hidden_size": 768, "num_hidden_layers": 2}
    found = opened(saved(tmp_path, {"hyper_parameters": {**OBLONG, "bert_config": bert}}))
    assert_same(found)
    assert {"activation", "norm_epsilon"} <= set(assumed(found))


@pytest.mark.parametrize("name", ["None", "partial"])
def test_text_that_names_no_activation(name: str, tmp_path: Path) -> None:
    """An option that was not set, and functools.partial as text."""
    found = opened(saved(tmp_path, {"hyper_parameters": {**OBLONG, "act_layer": name}}))
    assert_same(found)
    assert "activation" in assumed(found)


@pytest.mark.parametrize("stated", [{"img_size": 8}, {"img_size": [8, 8], "stride_size": 2}, {"stride_size": [2, 2]}])
def test_patches_that_overlap_are_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    """Images of 8 pixels and patches of 4 every 2: 3x3 positions, as for images of 12 without overlap."""
    sizes: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1, "num_classes": 5}
    model = randomized(VisionTransformer(img_size=12, **sizes))
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": stated}, tmp_path / "x.ckpt")
    with pytest.raises(
        InputError, match=r"patches of 4x4 every 2x2 pixels; patches that overlap .*--set image_size=12x12"
    ):
        opened(tmp_path / "x.ckpt")
    assert opened(tmp_path / "x.ckpt", image_size=12).config.model.image_size == (12, 12)


@pytest.mark.parametrize(("size", "stride"), [(224, None), (224, 160), (256, 2)])
def test_another_resolution_than_stated_is_no_overlap(size: int, stride: int | None, tmp_path: Path) -> None:
    """Weights that were resized to 384 pixels beside the settings of training, and a stride of something else."""
    sizes: dict[str, Any] = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1, "num_classes": 5}
    model = VisionTransformer(img_size=384, **sizes)
    stated = {"img_size": size, "stride": stride}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": stated}, tmp_path / "x.ckpt")
    found = opened(tmp_path / "x.ckpt")
    assert found.config.model.image_size == (384, 384)
    assert any("ignored because the arrays contradict it" in note for note in found.notes)
