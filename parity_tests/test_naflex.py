"""Images of any aspect in one batch: the twins agree, padding changes nothing, and transformers' Siglip2 agrees."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import vit_jax
import vit_jax.naflex
import vit_torch
import vit_torch.naflex
from parity_tests.pixel_sweep import picture
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.registry import FOREIGN_FORMATS
from vit_core.checkpoints.formats.transformers.image_processors import FILE, read_preprocessing
from vit_core.errors import InputError
from vit_core.naflex import Patches, collate, fit_grid, patchify
from vit_core.parameters import parameters
from vit_core.preprocess import normalize, resize_image
from vit_core.rope import PUBLISHED

MODEL = ViTConfig(
    image_size=16, patch_size=4, width=24, depth=2, heads=3, mlp_dim=40, num_classes=5, pooling="map", class_token=False
)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest value of b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


KINDS: dict[str, dict[str, Any]] = {
    "map": {},
    "gap": {"pooling": "gap"},
    "class token and registers": {"pooling": "cls", "class_token": True, "registers": 2},
    "mean of all tokens": {"pooling": "gap", "pool_prefix": True, "registers": 2, "position_resampling": "bicubic"},
    "norm of patches, DINOv2's resampling": {"embed_norm": True, "position_resampling": "dinov2"},
    "no positions": {"position_embedding": "none", "patch_bias": False},
    "rotary positions": {"position_embedding": "none", "rope": "dinov3", "head_dim": 8, "registers": 2},
    "rotary positions of a reference grid, and others": {"rope": "eva02", "head_dim": 8},
    "learned frequencies": {"rope": "mixed", "head_dim": 8, "class_token": True, "pooling": "cls"},
}
SIZES = [(8, 20), (16, 16), (12, 4)]


def images_of(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((*size, 3)) for size in sizes]


def in_torch(batch: Patches) -> Patches:
    return Patches(*(None if array is None else torch.from_numpy(array) for array in batch))


def in_jax(batch: Patches) -> Patches:
    return Patches(*(None if array is None else jnp.asarray(array) for array in batch))


@pytest.mark.parametrize("kind", KINDS)
def test_both_twins(kind: str) -> None:
    """Logits and the gradient of every parameter."""
    weights = checkpoint(MODEL.replace(**KINDS[kind]))
    batch, probe_BC = collate(images_of(SIZES), weights.config.model), np.random.default_rng(1).standard_normal((3, 5))
    model = vit_torch.load(weights, dtype="float64")
    logits_BC = vit_torch.naflex.logits(model, in_torch(batch))
    (logits_BC * torch.from_numpy(probe_BC)).sum().backward()
    graph, state = nnx.split(vit_jax.load(weights, dtype="float64"))

    def loss(state: Any) -> tuple[jax.Array, jax.Array]:
        logits_BC = vit_jax.naflex.logits(nnx.merge(graph, state), in_jax(batch))
        return (logits_BC * probe_BC).sum(), logits_BC

    (_, ours_BC), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert distance(np.asarray(ours_BC), logits_BC.detach().numpy()) < parity.FLOAT64_BOUND
    merged = vit_jax.arrays.read(nnx.merge(graph, gradients))
    rows = parameters(weights.config.model)
    for name, p in model.named_parameters():
        expected = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        found = rows[name].to_torch(np.asarray(merged[name]))
        # The gradient of a key bias is zero in exact arithmetic: rounding noise beside the other gradients of its row.
        bound = parity.FLOAT64_BOUND * max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    """Outputs depend neither on the amount of padding nor on its values."""
    model = vit_torch.load(checkpoint(MODEL.replace(**KINDS[kind])), dtype="float64")
    together = collate(images_of(SIZES), model.config, length=30)
    together.patches_BNV[~together.valid_BN] = 1e3
    with torch.no_grad():
        found_BC = vit_torch.naflex.logits(model, in_torch(together)).numpy()
        alone = [vit_torch.naflex.logits(model, in_torch(collate([one], model.config))) for one in images_of(SIZES)]
    assert distance(found_BC, torch.cat(alone).numpy()) < parity.FLOAT64_BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_alone(kind: str) -> None:
    """An image gives the same outputs as patches, at the model's size and at another one at run time."""
    model = vit_torch.load(checkpoint(MODEL.replace(**KINDS[kind])), dtype="float64")
    for image_HWC, interpolate in zip(images_of([(16, 16), (8, 20)]), (False, True), strict=True):
        with torch.no_grad():
            as_image = model(torch.from_numpy(image_HWC).permute(2, 0, 1)[None], interpolate=interpolate).numpy()
            as_patches = vit_torch.naflex.logits(model, in_torch(collate([image_HWC], model.config))).numpy()
        assert distance(as_patches, as_image) < parity.FLOAT64_BOUND


def test_siglip2_of_transformers() -> None:
    """Its positions are resampled in float32 on the CPU whatever the model: each is off by up to 2**-24 of a value of
    order one, and outputs by as much times the number of layers that pass it on (fewer than 100).

    No image is one patch wide: torch 2.15 resamples to several rows and one column wrongly if asked to antialias (it
    gives another result than one axis after the other).
    """
    theirs, ours = siglip2_pair()
    sizes = [(8, 20), (16, 16), (12, 8)]
    batch = in_torch(collate(images_of(sizes), ours.config, length=16))
    grids_B2 = torch.tensor([(height // 4, width // 4) for height, width in sizes])
    with torch.no_grad():
        expected_BD = theirs(batch.patches_BNV, batch.valid_BN.int(), grids_B2).pooler_output.numpy()
        found_BD = vit_torch.naflex.logits(ours, batch).numpy()
    assert distance(found_BD, expected_BD) < 100 * 2**-24


def test_siglip2_of_transformers_with_the_same_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the float32 of the positions is equal to float64's precision."""
    theirs, ours = siglip2_pair()
    sizes = [(8, 20), (16, 16), (12, 8)]
    batch = in_torch(collate(images_of(sizes), ours.config, length=16))
    pos_BND = vit_torch.naflex.resampled(ours.pos_embed[0].unflatten(0, (4, 4)), batch)
    embeddings = next(each for each in theirs.modules() if isinstance(each, Siglip2VisionEmbeddings))
    monkeypatch.setattr(embeddings, "resize_positional_embeddings", lambda *_, **__: pos_BND)
    grids_B2 = torch.tensor([(height // 4, width // 4) for height, width in sizes])
    with torch.no_grad():
        expected_BD = theirs(batch.patches_BNV, batch.valid_BN.int(), grids_B2).pooler_output.numpy()
        assert distance(vit_torch.naflex.logits(ours, batch).numpy(), expected_BD) < parity.FLOAT64_BOUND


def siglip2_pair() -> tuple[Any, vit_torch.ViT]:
    """transformers' model with random weights, and ours with the same."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = Siglip2VisionConfig(**sizes, num_channels=3, num_patches=16, patch_size=4)
    config._attn_implementation = "sdpa"  # the other has a softmax in float32
    theirs = Siglip2VisionModel(config).double().eval()
    model = MODEL.replace(num_classes=0, norm_epsilon=config.layer_norm_eps)
    writer = FOREIGN_FORMATS["transformers"].writer
    assert writer is not None
    state = {name: torch.from_numpy(array) for name, array in writer.write(checkpoint(model)).arrays.items()}
    patches = "vision_model.embeddings.patch_embedding.weight"
    state[patches] = state[patches].permute(0, 2, 3, 1).flatten(1)  # Siglip's are a convolution
    prefix = next(iter(theirs.state_dict())).partition("embeddings")[0]
    theirs.load_state_dict({prefix + name.removeprefix("vision_model."): x for name, x in state.items()}, strict=True)
    return theirs, vit_torch.load(checkpoint(model), dtype="float64")


ROTARY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dinov3": ({"rope": "dinov3"}, {"rope_rotate_half": True}),
    "axial": (
        {"rope": {**PUBLISHED["eva02"], "base": 100.0, "reference": (4, 4)}},
        {"rope_ref_feat_shape": (4, 4)},
    ),
    "mixed": ({"rope": {**PUBLISHED["mixed"], "base": 100.0}}, {"rope_grid_indexing": "xy"}),
}
"""timm's rope_type -> our fields, and timm's other options."""


@pytest.mark.parametrize("kind", [pytest.param("dinov3", marks=pytest.mark.slow), "axial", "mixed"])
def test_rotary_positions_of_timms_naflexvit(kind: str) -> None:
    """A batch of three aspects, with padding, in float64; both twins.

    timm computes angles and their tables in float32 whatever the model is. An angle of at most 2 pi here (coordinates
    of up to 4 in grids, times frequencies of at most 1) is off by up to 2**-24 of itself for each of the four roundings
    of period, coordinate, product and table, so outputs by 4 * 2 pi * 2**-24, passed on by fewer than 10 layers.
    """
    ours, options = ROTARY[kind]
    weights = checkpoint(
        MODEL.replace(
            head_dim=8,
            pooling="cls",
            class_token=True,
            registers=1,
            position_embedding="none",
            **{"activation": "gelu", "layer_scale": 0.1, **ours},
        )
    )
    config, arrays = weights.config.model, {name: torch.from_numpy(array) for name, array in weights.arrays.items()}
    theirs = NaFlexVit(
        NaFlexVitCfg(
            patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=40 / 24, class_token=True, reg_tokens=1,
            pos_embed="none", rope_type=kind, rope_temperature=100.0, global_pool="token", init_values=0.1, **options,
        ),
        num_classes=5,
    ).double().eval()  # fmt: skip
    state = {}
    for name, array in arrays.items():
        embeds = name.startswith(("cls_token", "reg_token", "patch_embed."))
        renamed = name.replace("patch_embed.", "").replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if name.endswith("rope.freqs"):
            continue
        state[f"embeds.{renamed}" if embeds else renamed] = array
    state["embeds.proj.weight"] = state["embeds.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    if kind == "mixed":
        state["rope.freqs"] = torch.stack([arrays[f"blocks.{i}.attn.rope.freqs"] for i in range(2)], dim=1)
    theirs.load_state_dict(state, strict=True)
    sizes = [(8, 20), (16, 16), (12, 8)]
    batch = collate(images_of(sizes), config, length=20)
    places = [np.indices((height // 4, width // 4)).reshape(2, -1).T for height, width in sizes]
    padded_BN2 = np.stack([np.pad(each, ((0, 20 - len(each)), (0, 0))) for each in places])
    with torch.no_grad():
        expected_BC = theirs(
            torch.from_numpy(batch.patches_BNV),
            patch_coord=torch.from_numpy(padded_BN2),
            patch_valid=torch.from_numpy(batch.valid_BN),
        ).numpy()
        found_BC = vit_torch.load(weights, dtype="float64")(in_torch(batch)).numpy()
    assert distance(found_BC, expected_BC) < 10 * 4 * 2 * np.pi * 2**-24
    in_jax_BC = vit_jax.load(weights, dtype="float64")(in_jax(batch))
    assert distance(np.asarray(in_jax_BC), found_BC) < parity.FLOAT64_BOUND


@pytest.mark.parametrize("max_patches", [1, 7, 256, 1024])
def test_grids_are_transformers(max_patches: int) -> None:
    for height in (1, 3, 16, 100, 333, 4000):
        for width in (2, 15, 17, 224, 1333):
            theirs = get_image_size_for_max_num_patches(height, width, patch_size=16, max_num_patches=max_patches)
            assert fit_grid(height, width, (16, 16), max_patches) == (theirs[0] // 16, theirs[1] // 16)


PROCESSORS: list[dict[str, Any]] = [
    {"patch_size": 4, "max_num_patches": 24},
    {"patch_size": 5, "max_num_patches": 9, "resample": 3},
    {"patch_size": 16, "max_num_patches": 7, "image_mean": [0.1, 0.5, 0.3], "image_std": [0.2, 0.4, 1.0]},
]


@pytest.mark.parametrize("options", PROCESSORS, ids=str)
def test_patches_are_those_of_the_processor(options: dict[str, Any], tmp_path: Path) -> None:
    """Patches, masks and grids of images of odd remainders, upright and across; its file gives the constants.

    The values differ by the roundings of float32: (x / 255 - mean) / std there, (x - 255 mean) * (1 / (255 std)) here.
    """
    theirs = Siglip2ImageProcessorPil(**options)
    theirs.save_pretrained(tmp_path)
    model = MODEL.replace(patch_size=options["patch_size"], image_size=4 * options["patch_size"])
    source = Source(tmp_path, LazyArrays({}), preprocessor=json.loads((tmp_path / FILE).read_text()))
    preprocessing, notes = read_preprocessing(source, model, "siglip2_vision_model", None)
    assert preprocessing is not None
    assert notes == []
    for height, width in (
        (17, 40),
        (40, 17),
        (23, 31),
        (31, 23),
        (16, 16),
        (1, 1),
        (3, 41),
        (41, 3),
        (90, 64),
        (25, 24),
    ):
        image, most = picture(height, width), options["max_num_patches"]
        fitted_HWC = normalize(resize_image(image, preprocessing), preprocessing)
        found, expected = collate([fitted_HWC], model, length=most), theirs(image, return_tensors="np")
        grid = [side // patch for side, patch in zip(fitted_HWC.shape[:2], model.patch_size, strict=True)]
        assert expected["spatial_shapes"].tolist() == [grid]
        np.testing.assert_array_equal(found.valid_BN, expected["pixel_attention_mask"] == 1)
        scale = 1 / min(preprocessing.std)
        apart = np.abs(found.patches_BNV - expected["pixel_values"]).max()
        assert apart <= 4 * 2.0**-24 * scale  # each value: a quotient, a difference and a product, rounded


def test_what_does_not_fit() -> None:
    image = np.zeros((16, 16, 3))
    with pytest.raises(InputError, match="an image of 15x16 is not a multiple of the patch 4x4; resize it by fit_grid"):
        patchify(image[1:], (4, 4))
    with pytest.raises(InputError, match="length: 3 is less than the 16 patches"):
        collate([image], MODEL, length=3)
    with pytest.raises(InputError, match="need a model without relative positions, a stem"):
        collate([image], MODEL.replace(relative_bias="table"))
    with pytest.raises(InputError, match="max_patches: 0, expected 1 or more"):
        fit_grid(8, 8, (4, 4), 0)


def test_heads_of_a_batch_of_patches() -> None:
    model = vit_torch.from_seed(MODEL, 0, dtype="float64")
    with pytest.raises(InputError, match="return_heads: is not available for a batch of patches"):
        model(in_torch(collate(images_of(SIZES), MODEL)), return_heads=True)
