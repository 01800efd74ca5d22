"""What a new checkpoint may replace."""

from pathlib import Path

import numpy as np
import pytest

from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity, save_checkpoint
from vit_core.checkpoints.overwriting import check_outside_runs, check_target, remove_replaced
from vit_core.errors import InputError
from vit_core.storage import Location, location

MODEL = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3)


def random_checkpoint() -> Checkpoint:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    return Checkpoint.of(CheckpointConfig(model=MODEL), arrays)


@pytest.fixture(params=["here", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder on this machine, and one in a store."""
    return tmp_path / "target" if request.param == "here" else location(f"memory://bucket/{tmp_path.name}")


def names(files: tuple[Location, ...]) -> set[str]:
    return {file.name for file in files}


def test_a_missing_or_empty_target(folder: Location) -> None:
    assert check_target(folder, "vit", False) == ()
    folder.mkdir()
    assert check_target(folder, "vit", False) == ()
    assert check_target(folder / "a.npz", "google", False) == ()


@pytest.mark.parametrize("format", ["vit", "timm"])
def test_the_same_kind(folder: Location, format: str) -> None:
    save_checkpoint(folder, random_checkpoint(), format=format)
    assert names(check_target(folder, format, False)) == {"config.json", "model.safetensors"}
    (folder / "README.md").write_text("kept")
    assert names(check_target(folder, format, False)) == {"config.json", "model.safetensors"}
    other = "timm" if format == "vit" else "vit"
    with pytest.raises(InputError, match=f"contains a {format} checkpoint, not a {other} checkpoint"):
        check_target(folder, other, False)
    assert names(check_target(folder, other, True)) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "weights.npz", "old.ckpt"])
def test_weights_that_would_stay(folder: Location, name: str) -> None:
    save_checkpoint(folder, random_checkpoint())
    (folder / name).write_bytes(b"old")
    with pytest.raises(InputError, match=rf"{name} would remain beside the new weights; .* --overwrite"):
        check_target(folder, "vit", False)
    assert name in names(check_target(folder, "vit", True))


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin", "notes.txt", "cats/1.png"])
def test_what_is_no_checkpoint(folder: Location, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(InputError, match=rf"contains other files \({name.partition('/')[0]}\)"):
        check_target(folder, "vit", False)
    removable = {name} if name in ("config.json", "pytorch_model.bin") else set()
    assert names(check_target(folder, "vit", True)) == removable


def test_files_of_an_earlier_checkpoint_are_removed(folder: Location) -> None:
    save_checkpoint(folder, random_checkpoint())
    for name in ("pytorch_model.bin", "preprocessor_config.json", "notes.txt"):
        (folder / name).write_text("old")
    remove_replaced(check_target(folder, "vit", True), ("model.safetensors", "config.json"))
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "notes.txt"}


def test_a_file(folder: Location) -> None:
    file = folder / "weights.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"numbers")
    with pytest.raises(InputError, match=r"weights.npz: exists and is not a google checkpoint"):
        check_target(file, "google", False)
    assert check_target(file, "google", True) == (file,)


@pytest.mark.parametrize("name", ["run.json", "steps/000100/model.safetensors"])
def test_a_training_run_is_never_written_to(folder: Location, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"is the folder of a training run .* choose another folder"):
            check_target(folder, "vit", overwrite)


def test_inside_a_training_run(folder: Location) -> None:
    folder.mkdir(parents=True)
    for name in ("checkpoint", "steps/000100", "export"):
        check_outside_runs(folder / name)
    (folder / "run.json").write_text("{}")
    for name in ("checkpoint", "checkpoint_ema", "steps", "steps/000100"):
        with pytest.raises(InputError, match="belongs to the training run"):
            check_outside_runs(folder / name)
    check_outside_runs(folder / "export")
