"""torchvision's state dicts, in and out, against torchvision's own model: parity.FLOAT64_BOUND unless derived."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer, interpolate_embeddings

from parity_tests.formats.foreign import (
    SMALL,
    assert_same_bits,
    assumed,
    images,
    largest_difference,
    nchw,
    opened,
    other_notes,
    randomized,
    save,
)
from parity_tests.twins import checkpoint
from vit_core import CheckpointConfig, parity, variants
from vit_core.checkpoints import Provenance, save_checkpoint
from vit_core.checkpoints.containers import open_container
from vit_core.checkpoints.formats import torchvision as lineage
from vit_core.checkpoints.formats.interface import assume_heads
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.preprocess import IMAGE_FIELDS, Preprocessing

SIZES: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "num_layers": 2,
    "num_heads": 3,
    "hidden_dim": 24,
    "mlp_dim": 40,
    "num_classes": 5,
}
CONFIG = SMALL.replace(
    norm_epsilon=1e-6,
    position_resampling="bicubic_align_corners",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "representation": {"representation_size": 16},
    "depth 12": {"num_layers": 12},
    "one patch": {"image_size": 4},
    "patch 2": {"patch_size": 2},
}
FIELDS = {
    "plain": {},
    "representation": {"representation": 16},
    "depth 12": {"depth": 12},
    "one patch": {"image_size": 4},
    "patch 2": {"patch_size": 2},
}


def theirs(**options: Any) -> Any:
    return randomized(VisionTransformer(**{**SIZES, **options}))


def headless(model: Any) -> Any:
    """As users extract features from it."""
    model.heads = nn.Identity()
    return model


def older(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of torchvision's first releases with these models."""
    return {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): x for name, x in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OPTIONS)
def test_read_and_written_back(name: str, suffix: str, tmp_path: Path) -> None:
    model = theirs(**OPTIONS[name])
    path = save(tmp_path / f"theirs{suffix}", model.state_dict())
    found = opened(path, heads=3)
    assert found.config.model == CONFIG.replace(**FIELDS[name])
    assert (found.config.provenance.source_format, found.config.preprocessing) == ("torchvision", None)
    assert (assumed(found), other_notes(found)) == ({"norm_epsilon": 1e-6}, ())
    assert largest_difference(found, model(nchw(images(found.config.model)))) <= parity.FLOAT64_BOUND
    save_checkpoint(tmp_path / f"ours{suffix}", found, format="torchvision")
    assert_same_bits(open_container(tmp_path / f"ours{suffix}").arrays, open_container(path).arrays)


def test_jax(tmp_path: Path) -> None:
    model = theirs(representation_size=16)
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    assert largest_difference(found, model(nchw(images(CONFIG))), jax=True) <= parity.FLOAT64_BOUND


def test_float32(tmp_path: Path) -> None:
    model = theirs().float()
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    expected = model(nchw(images(CONFIG), torch.float32))
    assert largest_difference(found, expected, "float32") <= parity.FLOAT32_BOUND


@pytest.mark.parametrize("case", ["stated", "pickled"])
def test_an_epsilon_that_the_file_states(case: str, tmp_path: Path) -> None:
    """The constructor's norm_layer may set it."""
    model = theirs(norm_layer=partial(nn.LayerNorm, eps=1e-2))
    stated = {"state_dict": model.state_dict(), "hyper_parameters": {"norm_eps": 1e-2, "num_heads": 3}}
    torch.save(stated if case == "stated" else model, tmp_path / "theirs.pt")
    found = opened(tmp_path / "theirs.pt")
    assert not assumed(found)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize("case", ["stated", "pickled"])
def test_an_activation_that_the_file_states_is_refused(case: str, tmp_path: Path) -> None:
    """ViTConfig has no ReLU."""
    model = theirs()
    for layer in model.encoder.layers:
        layer.mlp[1] = nn.ReLU()
    stated = {"state_dict": model.state_dict(), "hyper_parameters": {"act_layer": "relu"}}
    torch.save(stated if case == "stated" else model, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match=r"act_layer states '(?i:relu)', which ViTConfig cannot express"):
        opened(tmp_path / "theirs.pt", heads=3)


def test_older_names_of_the_mlp(tmp_path: Path) -> None:
    """Compared with torchvision's own renaming."""
    state = older(theirs().state_dict())
    model = VisionTransformer(**SIZES).double().eval()
    model.load_state_dict(dict(state), strict=True)
    found = opened(save(tmp_path / "older.pth", state), heads=3)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_an_averaged_model_in_a_training_checkpoint(tmp_path: Path) -> None:
    """Files of torchvision's reference scripts: the average is under model_ema, with the prefix module. and a count."""
    model = theirs()
    average = {f"module.{name}": x for name, x in model.state_dict().items()} | {"n_averaged": torch.tensor(7)}
    torch.save({"model": theirs().float().state_dict(), "model_ema": average, "epoch": 3}, tmp_path / "checkpoint.pth")
    found = opened(tmp_path / "checkpoint.pth", heads=3)
    assert assumed(found) == {"norm_epsilon": 1e-6}
    assert other_notes(found) == (
        "model found under 'model_ema'",
        "parts of names that wrappers added are removed: module",
        "other models in the file: model; choose one with --part NAME",
        "left out: n_averaged, epoch",
    )
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


def test_without_heads(tmp_path: Path) -> None:
    model = headless(theirs())
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3)
    assert found.config.model == CONFIG.replace(num_classes=0)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    notes = save_checkpoint(tmp_path / "ours.pth", found, format="torchvision")
    assert notes[1] == "it has no head: set model.heads = torch.nn.Identity() before loading"
    headless(theirs()).load_state_dict(torch.load(tmp_path / "ours.pth"), strict=True)


def test_a_representation_without_a_head(tmp_path: Path) -> None:
    config = CONFIG.replace(num_classes=0, representation=16)
    notes = save_checkpoint(tmp_path / "ours.pth", checkpoint(config), format="torchvision")
    assert notes[1] == "it has no head: set model.heads.head = torch.nn.Identity() before loading"
    model: Any = VisionTransformer(**lineage.arguments(config)).double().eval()
    model.heads.head = nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "ours.pth"), strict=True)
    assert (
        largest_difference(opened(tmp_path / "ours.pth", heads=3), model(nchw(images(config)))) <= parity.FLOAT64_BOUND
    )


@pytest.mark.parametrize("fields", [{}, {"representation": 16}, {"heads": 6}, {"head_dim": 8}], ids=str)
def test_written_opens_there_and_comes_back(fields: dict[str, Any], tmp_path: Path) -> None:
    ours = checkpoint(CONFIG.replace(**fields))
    (note,) = save_checkpoint(tmp_path / "vit.pth", ours, format="torchvision")
    assert note.startswith("opens in torchvision.models.VisionTransformer(image_size=12, patch_size=4, num_layers=2, ")
    model = VisionTransformer(**lineage.arguments(ours.config.model)).double().eval()
    model.load_state_dict(torch.load(tmp_path / "vit.pth"), strict=True)
    assert largest_difference(ours, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    back = opened(tmp_path / "vit.pth", **{"heads": 3, **fields})
    assert back.config.model == ours.config.model
    assert_same_bits(back.arrays, ours.arrays)


WIDENED: dict[str, tuple[dict[str, Any], str]] = {
    "no biases": ({"qkv_bias": False, "head_bias": False, "patch_bias": False, "proj_bias": False}, "qkv_bias: zeros"),
    "class token without position": ({"class_token_position": False}, "position of the class token: zeros"),
    "sincos": ({"position_embedding": "sincos2d_mae"}, "positions: the table of 'sincos2d_mae'"),
    "no positions": ({"position_embedding": "none"}, "positions: the table of 'none'"),
}


@pytest.mark.parametrize("name", WIDENED)
def test_filled_in_where_it_changes_no_value(name: str, tmp_path: Path) -> None:
    fields, note = WIDENED[name]
    ours = checkpoint(CONFIG.replace(**fields))
    assert note in save_checkpoint(tmp_path / "vit.pth", ours, format="torchvision")
    model = VisionTransformer(**SIZES).double().eval()
    model.load_state_dict(torch.load(tmp_path / "vit.pth"), strict=True)
    assert largest_difference(ours, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image_size": (8, 12)}, "torchvision's VisionTransformer accepts only squares, found image_size 8x12"),
        ({"patch_size": (4, 2)}, "torchvision's VisionTransformer accepts only squares, found patch_size 4x2"),
        ({"channels": 1}, "a checkpoint in memory: torchvision cannot express channels 1 (it has 3)"),
        ({"head_dim": 5}, "a checkpoint in memory: torchvision cannot express head_dim 5 (it has none or 8)"),
        ({"heads": 5, "head_dim": 4}, "a checkpoint in memory: torchvision cannot express head_dim 4 (it has none)"),
        (
            {"activation": "quick_gelu"},
            "a checkpoint in memory: torchvision cannot express activation quick_gelu (it has gelu)",
        ),
        ({"pooling": "gap"}, "a checkpoint in memory: torchvision cannot express pooling gap (it has cls)"),
        ({"registers": 2}, "a checkpoint in memory: torchvision cannot express registers 2 (it has 0)"),
    ],
    ids=str,
)
def test_what_it_cannot_hold_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        save_checkpoint(tmp_path / "vit.pth", checkpoint(CONFIG.replace(**fields)), format="torchvision")
    assert str(error.value) == reason
    assert not (tmp_path / "vit.pth").exists()


def test_epsilon_and_activation_are_lossy(tmp_path: Path) -> None:
    ours = checkpoint(CONFIG.replace(norm_epsilon=1e-12, activation="gelu_tanh"))
    with pytest.raises(InputError, match=r"gelu_tanh \(it has gelu\), norm_epsilon 1e-12 \(it has 1e-06\); --"):
        save_checkpoint(tmp_path / "vit.pth", ours, format="torchvision")
    notes = save_checkpoint(tmp_path / "vit.pth", ours, format="torchvision", allow_lossy=True)
    assert sum(note.startswith("lossy: ") for note in notes) == 2


def test_labels_and_preprocessing_are_said_to_stay_behind(tmp_path: Path) -> None:
    config = CheckpointConfig(model=CONFIG, preprocessing=Preprocessing(image_size=12), labels=tuple("abcde"))
    notes = save_checkpoint(tmp_path / "vit.pth", checkpoint(CONFIG).with_config(config), format="torchvision")
    assert notes[1:] == ("a state dict does not contain preprocessing or labels",)
    ours = checkpoint(CONFIG.replace(position_resampling="bicubic"))
    notes = save_checkpoint(tmp_path / "vit.pth", ours, format="torchvision")
    assert notes[1:] == ("position_resampling: bicubic_align_corners when read again, not bicubic",)


def test_a_convolution_stem_is_refused(tmp_path: Path) -> None:
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
    path = save(tmp_path / "stem.pth", VisionTransformer(**SIZES, conv_stem_configs=stem).state_dict())
    with pytest.raises(InputError, match=r"conv_proj\.conv_bn_relu_0\.0\.weight is of a convolution stem"):
        opened(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("encoder.ln.bias"), r"missing encoder\.ln\.bias \[24\]"),
        (lambda s: s.pop("class_token"), r"missing class_token \[1, 1, 24\]"),
        (lambda s: s.pop("conv_proj.weight"), r"conv_proj\.weight is missing; expected an array of 4 axes"),
        (lambda s: s.pop("encoder.pos_embedding"), r"encoder\.pos_embedding is missing"),
        (lambda s: s.pop("heads.head.weight"), r"does not use: heads\.head\.bias"),
        (lambda s: s.update({"mask_token": s["class_token"]}), "does not use: mask_token"),
        (
            lambda s: s.update({"encoder.ln.weight": torch.ones(25)}),
            r"ln\.weight expected \[24\] found \[25\]",
        ),
        (lambda s: s.update({"conv_proj.weight": torch.ones(0, 3, 4, 4)}), r"theirs\.pth: width: expected"),
        (lambda s: s.update({"conv_proj.weight": torch.ones(24)}), r"conv_proj\.weight has shape \[24\]"),
        (lambda s: s.update({"encoder.pos_embedding": torch.ones(1, 9, 24)}), r"8 positions do not form a square grid"),
        (
            lambda s: s.update({f"encoder.layers.encoder_layer_{10**8}.ln_1.bias": torch.ones(24)}),
            "does not use: .*encoder_layer_100000000",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: Any, said: str, tmp_path: Path) -> None:
    state = dict(theirs().state_dict())
    change(state)
    with pytest.raises(InputError, match=said) as error:
        opened(save(tmp_path / "theirs.pth", state), heads=3)
    assert "\n" not in str(error.value)


def test_positions_at_another_resolution(tmp_path: Path) -> None:
    """Against torchvision's own resampling, where it is square; and where it is not, its interpolation itself."""
    state = theirs().state_dict()
    path = save(tmp_path / "theirs.pth", state)
    found = opened(path, heads=3)
    bigger = theirs(image_size=20)
    bigger.load_state_dict(interpolate_embeddings(20, 4, dict(state)))
    resized = found.adapt(image_size=20)
    assert largest_difference(resized, bigger(nchw(images(resized.config.model)))) <= parity.FLOAT64_BOUND
    grid_1Dhw = state["encoder.pos_embedding"][:, 1:].permute(0, 2, 1).reshape(1, 24, 3, 3)
    expected = nn.functional.interpolate(grid_1Dhw, size=(2, 7), mode="bicubic", align_corners=True)
    there = found.adapt(image_size=(8, 28)).arrays["pos_embed"][:, 1:]
    assert parity.difference(there, expected.flatten(2).permute(0, 2, 1).numpy())[1] <= parity.FLOAT64_BOUND


def test_heads_of_the_published_architectures() -> None:
    """Their names, shapes and heads, without their values."""
    for variant in ("B/16", "B/32", "L/16", "L/32", "H/14"):
        with torch.device("meta"):
            model = getattr(torchvision.models, f"vit_{variant.replace('/', '_').lower()}")()
        config = variants.variant(variant, image_size=224, num_classes=1000, activation="gelu")
        rules = lineage.rules(config)
        assert {name for rule in rules for name in rule.theirs} == set(model.state_dict())
        heads, (assumption,) = assume_heads(config.width, config.depth, config.mlp_dim, {})
        assert heads == model.encoder.layers[0].num_heads
        assert (assumption.field, assumption.value) == ("heads", heads)
        assert (
            str(assumption)
            == f"heads: {heads}, as in ViT-{variant.partition('/')[0]}; --set heads=N for another number"
        )
        shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        assert [parameters(config)[r.ours[0]].shape for r in rules] == [shapes[r.theirs[0]] for r in rules]
        assert model.encoder.layers[0].ln_1.eps == config.norm_epsilon


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    model = randomized(VisionTransformer(**SIZES, norm_layer=partial(nn.LayerNorm, eps=1e-3)))
    found = opened(save(tmp_path / "theirs.pth", model.state_dict()), heads=3, norm_epsilon=1e-3)
    assert largest_difference(found, model(nchw(images(CONFIG)))) <= parity.FLOAT64_BOUND
    wrong = opened(tmp_path / "theirs.pth", heads=3)
    assert largest_difference(wrong, model(nchw(images(CONFIG)))) > 1e-6
    assert np.array_equal(wrong.arrays["head.bias"], found.arrays["head.bias"])


def test_the_assumed_preprocessing_is_that_of_the_published_weights() -> None:
    theirs: Any = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    config = CheckpointConfig(model=CONFIG, provenance=Provenance(source_format="torchvision"))
    ours, fields = config.preparation()
    assert fields == IMAGE_FIELDS, "all are assumed"
    assert (ours.mean, ours.std) == (tuple(theirs.mean), tuple(theirs.std))
    assert (ours.crop_fraction, ours.interpolation) == (
        theirs.crop_size[0] / theirs.resize_size[0], theirs.interpolation.value
    )  # fmt: skip
    gray = config.replace(model=CONFIG.replace(channels=1)).preparation()[0]
    assert gray == Preprocessing(image_size=12, channels=1)
