"""Features of images of any aspect: transformers' Siglip2 after a layer, in both twins and through `vit features`."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import vit_jax
import vit_torch
import vit_torch.naflex
from parity_tests.pixel_sweep import picture
from parity_tests.test_naflex import distance, images_of, in_jax, in_torch, siglip2_pair
from parity_tests.twins import checkpoint
from vit_cli.application import run
from vit_core import open_checkpoint, parity
from vit_core.feature_files import read_features
from vit_core.naflex import collate

LAYER = 0
FEATURES = ("--layer", str(LAYER), "--compute-dtype", "float64", "--batch-size", "2")


def after_layer(theirs: Siglip2VisionModel, patches_BNV: Any, valid_BN: Any, grids_B2: Any) -> np.ndarray:
    with torch.no_grad():
        found = theirs(patches_BNV.double(), valid_BN, grids_B2, output_hidden_states=True)
    tokens_BND: np.ndarray = found.hidden_states[LAYER + 1].numpy()
    return tokens_BND


def mean_of_valid(tokens_BND: np.ndarray, valid_BN: np.ndarray) -> np.ndarray:
    return np.stack([tokens_ND[valid_N].mean(axis=0) for tokens_ND, valid_N in zip(tokens_BND, valid_BN, strict=True)])


def test_tokens_and_their_mean_are_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same positions (it resamples them in float32), to float64's precision."""
    theirs, ours = siglip2_pair()
    sizes = [(8, 20), (16, 16), (12, 8)]
    batch = collate(images_of(sizes), ours.config, length=16)
    pos_BND = vit_torch.naflex.resampled(ours.pos_embed[0].unflatten(0, (4, 4)), in_torch(batch))
    embeddings = next(each for each in theirs.modules() if isinstance(each, Siglip2VisionEmbeddings))
    monkeypatch.setattr(embeddings, "resize_positional_embeddings", lambda *_, **__: pos_BND)
    grids_B2 = torch.tensor([(height // 4, width // 4) for height, width in sizes])
    tokens_BND = after_layer(
        theirs, torch.from_numpy(batch.patches_BNV), torch.from_numpy(batch.valid_BN).int(), grids_B2
    )
    in_jax_too = vit_jax.load(checkpoint(ours.config), dtype="float64")
    for pool, expected in (("tokens", tokens_BND), ("gap", mean_of_valid(tokens_BND, batch.valid_BN))):
        with torch.no_grad():
            by_torch = vit_torch.features(ours, in_torch(batch), LAYER, pool).numpy()
        by_jax = np.asarray(jax.jit(partial(vit_jax.features, in_jax_too, layer=LAYER, pool=pool))(in_jax(batch)))
        used = batch.valid_BN if pool == "tokens" else slice(None)
        for found in (by_torch, by_jax):
            assert distance(found[used], expected[used]) < parity.FLOAT64_BOUND


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Siglip2VisionModel, Path]:
    """A model of transformers', and the folder that it and its image processor were saved in."""
    folder = tmp_path_factory.mktemp("siglip2")
    theirs, _ = siglip2_pair()
    theirs.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16).save_pretrained(folder)
    return theirs, folder


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_command_gives_siglip2s_from_image_files(framework: str, siglip2: Any, tmp_path: Path) -> None:
    """Of five images in batches of two, the last one filled up.

    Positions are resampled in float32 there, and pixels normalized in it by both, in another order: values of order one
    are off by up to 2**-24, and by 4 roundings times 1 / std = 2. Fewer than 10 layers pass that on.
    """
    theirs, folder = siglip2
    (tmp_path / "photos").mkdir()
    images = [picture(height, width) for height, width in ((17, 40), (40, 17), (16, 16), (23, 31), (90, 64))]
    for i, image in enumerate(images):
        image.save(tmp_path / f"photos/{i}.png")
    made = Siglip2ImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    valid_BN = made["pixel_attention_mask"]
    tokens_BND = after_layer(theirs, made["pixel_values"], valid_BN, made["spatial_shapes"])
    out = tmp_path / "features.npy"
    command = ["features", folder, tmp_path / "photos", "--out", out, "--framework", framework, *FEATURES]
    assert run([str(word) for word in command]) == 0
    expected_BD = mean_of_valid(tokens_BND, valid_BN.numpy() == 1)
    assert distance(read_features(out).values_N, expected_BD) < 10 * (1 + 8) * 2**-24


def test_tokens_of_any_aspect_are_no_array(siglip2: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are, as soon as all images have one size."""
    picture(17, 40).save(tmp_path / "a.png")
    command = ["features", siglip2[1], tmp_path / "a.png", "--out", tmp_path / "x.npy", "--pool", "tokens"]
    assert run([str(word) for word in command]) == 2
    assert (
        "by preprocessing.max_patches (16) images have different numbers of tokens; use gap" in capsys.readouterr().err
    )
    assert run([str(word) for word in (*command, "--preprocessing", "max_patches=none")]) == 0
    assert read_features(tmp_path / "x.npy").values_N.shape == (1, 16, 24)
    assert open_checkpoint(siglip2[1]).config.preprocessing.max_patches == 16
