"""big_vision's model in a larger tree: with an optimizer's state, and as the image tower with a text tower."""

from pathlib import Path

import numpy as np
import pytest

from parity_tests.formats.foreign import assumed, other_notes
from parity_tests.formats.google_files import BIG_VISION, prefixed, random_arrays, save
from parity_tests.formats.google_reference import assert_equal, forward, images, in_torch
from parity_tests.formats.test_big_vision import NO_TOKEN, PIXELS, SMALL, laid_out, shapes_of
from vit_core.checkpoints import open_checkpoint


def test_train_state(tmp_path: Path) -> None:
    arrays = laid_out(random_arrays(shapes_of()))
    state = {**arrays, "opt/0/mu/cls": arrays["params/cls"], "opt/0/count": np.array(3), "extra/time": np.array(1.5)}
    opened = open_checkpoint(save(tmp_path / "file.npz", state))
    assert opened.config.model == SMALL
    assert assumed(opened) == {"image_size": (12, 12)}
    assert other_notes(opened) == ("model found under 'params'", PIXELS, "left out: opt, extra")


@pytest.mark.parametrize("images_first", [False, True])
def test_image_tower_of_two(images_first: bool, tmp_path: Path) -> None:
    """The image tower is opened even if the text tower has the names of a ViT, and everything else is named."""
    tower = prefixed(random_arrays(shapes_of(pool="map", classes=0)), "params/img/")
    text = prefixed(random_arrays(shapes_of(pool="tok")), "params/txt/")
    between = {"params/t": np.array([10.0]), "params/b": np.array([-10.0])}
    both = {**tower, **between, **text} if images_first else {**text, **between, **tower}
    path = save(tmp_path / "file.npz", both)
    opened = open_checkpoint(path)
    assert opened.config.model == SMALL.replace(pooling="map", num_classes=0, **NO_TOKEN)
    others = "other models in the file: params/txt; choose one with --part NAME"
    found = "model found under 'params/img'"
    assert other_notes(opened) == (found, others, PIXELS, "left out: params/t, params/b")
    alone = {name.removeprefix("params/img/"): array for name, array in tower.items()}
    assert_equal(in_torch(opened, images()), forward(alone, images(), pool="map", positions=BIG_VISION))
    alone = {name.removeprefix("params/txt/"): array for name, array in text.items()}
    named = open_checkpoint(path, part="params/txt")
    assert_equal(in_torch(named, images()), forward(alone, images(), pool="tok", positions=BIG_VISION))


def test_text_tower_without_patches_is_left_out_by_name(tmp_path: Path) -> None:
    tower = prefixed(random_arrays(shapes_of(pool="map", classes=0)), "params/img/")
    text = {"params/txt/Embed_0/embedding": np.zeros((9, 24)), "params/txt/pos_embedding": np.zeros((1, 4, 24))}
    opened = open_checkpoint(save(tmp_path / "file.npz", {**text, **tower, "params/t": np.array([10.0])}))
    assert other_notes(opened) == ("model found under 'params/img'", PIXELS, "left out: params/txt, params/t")
