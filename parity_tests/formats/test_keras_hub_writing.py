"""Presets of keras_hub that we write: the names, shapes and values are those of its own files."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity_tests.formats.keras_models import RECORDED, extract
from vit_core import InputError, open_checkpoint
from vit_core.checkpoints import Checkpoint, save_checkpoint
from vit_core.preprocess import Preprocessing


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recorded files."""
    return extract(tmp_path_factory.mktemp("keras"))


def names_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every array of the model in a file."""
    shapes: dict[str, tuple[int, ...]] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: shapes.update({name: item.shape} if hasattr(item, "shape") else {}))
    return {name: shape for name, shape in shapes.items() if not name.startswith("optimizer/")}


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3"])
def test_a_written_preset_has_the_names_of_keras(recorded: Path, tmp_path: Path, name: str) -> None:
    """And the same values, in all files; the mask token, which we do not have, is stated to be missing."""
    before = open_checkpoint(recorded / name)
    save_checkpoint(tmp_path / "out", before, format="keras_hub")
    after = open_checkpoint(tmp_path / "out")
    assert after.config.replace(provenance=before.config.provenance, probabilities=None) == before.config.replace(
        probabilities=None
    )
    for parameter in before.arrays:
        np.testing.assert_array_equal(after.arrays[parameter], before.arrays[parameter])
    theirs = {file.name: names_of(file) for file in (recorded / name).glob("*.h5")}
    ours = {file.name: names_of(file) for file in (tmp_path / "out").glob("*.h5")}
    if name == "vit":
        assert ours == theirs
    else:
        variables = "layers/dino"
        assert ours.keys() == theirs.keys()
        (ours_one,), (theirs_one,) = ours.values(), theirs.values()
        rest = {key: shape for key, shape in theirs_one.items() if "_embedding/vars/" not in key}
        assert {key: shape for key, shape in ours_one.items() if "_embedding/vars/" not in key} == rest
        tokens = sum(key.startswith(variables) and "_embedding/vars/" in key for key in theirs_one)
        assert sum("_embedding/vars/" in key for key in ours_one) == tokens - 1
        assert json.loads((tmp_path / "out" / "config.json").read_text())["config"]["use_mask_token"] is False
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stated = json.loads((recorded / name / "config.json").read_text())
    assert (config["module"], config["registered_name"]) == (stated["module"], stated["registered_name"])
    changed = {"position_embedding_shape", "use_mask_token", "patch_size"}
    same = {key: value for key, value in stated["config"].items() if key in config["config"] and key not in changed}
    assert {key: config["config"][key] for key in same} == same


def test_a_written_preset_replaces_one(recorded: Path, tmp_path: Path) -> None:
    """But nothing else, and no file of the old model remains."""
    save_checkpoint(tmp_path / "out", open_checkpoint(recorded / "vit"), format="keras_hub")
    save_checkpoint(tmp_path / "out", open_checkpoint(recorded / "dinov2"), format="keras_hub")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "metadata.json",
        "model.weights.h5",
    ]
    with pytest.raises(InputError, match="contains a keras_hub checkpoint, not a transformers checkpoint"):
        save_checkpoint(tmp_path / "out", open_checkpoint(recorded / "dinov3"), format="transformers")


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_written_image_tower_has_the_names_of_keras(recorded: Path, tmp_path: Path, name: str) -> None:
    """Those of the class of the tower alone, with the numbers of its positions."""
    before = open_checkpoint(RECORDED[name].path(recorded, name), fields={"num_classes": 0})
    images = before.config.replace(preprocessing=Preprocessing(image_size=8))
    notes = save_checkpoint(tmp_path / "out", Checkpoint(images, before.arrays), format="keras_hub")
    tower = {"siglip": "SigLIP", "clip": "CLIP"}[name] + "VisionEncoder"
    assert notes == (f"preprocessing: a preset of {tower} alone does not contain it",)
    after = open_checkpoint(tmp_path / "out")
    assert after.config.model == before.config.model
    for parameter in before.arrays:
        np.testing.assert_array_equal(after.arrays[parameter], before.arrays[parameter])
    prefix = f"layers/{'sig_lip' if name == 'siglip' else name}_vision_encoder/"
    whole = names_of(recorded / name / "model.weights.h5")
    theirs = {key.removeprefix(prefix): shape for key, shape in whole.items() if key.startswith(prefix)}
    assert names_of(tmp_path / "out" / "model.weights.h5") == theirs
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    stated = json.loads((recorded / name / "config.json").read_text())["config"]["vision_encoder"]
    assert (config["module"], config["registered_name"]) == (stated["module"], stated["registered_name"])
    assert config["config"].items() <= stated["config"].items()
    with h5py.File(tmp_path / "out" / "model.weights.h5") as file:
        numbers = file[f"layers/{prefix.split('/')[1].removesuffix('_encoder')}_embedding/vars/{int(name == 'clip')}"]
        assert numbers[()].tolist() == [list(range(before.config.model.positions))]


def test_labels_and_borders_are_not_in_a_preset(recorded: Path, tmp_path: Path) -> None:
    before = open_checkpoint(recorded / "vit")
    borders = Preprocessing(image_size=(8, 12), resize="border")
    config = before.config.replace(labels=("a", "b", "c"), preprocessing=borders)
    notes = save_checkpoint(tmp_path / "out", Checkpoint(config, before.arrays), format="keras_hub")
    assert notes == (
        "no image_converter.json: no image converter of keras_hub does the same as this model's preprocessing",
        "labels: a preset of keras_hub does not contain them",
    )
    assert not (tmp_path / "out" / "image_converter.json").exists()
