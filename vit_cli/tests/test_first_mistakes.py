"""What a newcomer types first, and is answered: paths in other places, options of other commands, a second run."""

import re
from pathlib import Path

import pytest

from vit_cli.tests.printed import Vit
from vit_train.tests.small_run import folder_of_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder_of_images(tmp_path / "photos", 48)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain ./photos", "./photos: no recipe; the recipe comes first, then the images: folder --data ./photos"),
        ("pretrain folder ./photos", "unexpected './photos'; images are named with --data ./photos"),
        ("resume photos photos", "vit resume: unexpected 'photos'; see vit resume --help"),
        ("finetune folder --init x --model B/16", "--model: the architecture is that of the checkpoint; leave it out"),
        ("finetune folder --init x.pth --data ./photos", "x.pth: no such checkpoint; .* weights such as .pth or"),
        (
            "finetune folder --init vit_small_patch16_224.augreg_in21k --data ./photos",
            "no such checkpoint; .* or timm's weights of this name: hf://timm/vit_small_patch16_224.augreg_in21k",
        ),
        ("inspect vit_base_patch16_224", "or timm's weights of this name: hf://timm/vit_base_patch16_224.TAG"),
        ("inspect google/vit-base-patch16-224", "or in the Hugging Face Hub hf://google/vit-base-patch16-224"),
        (
            "pretrain folder --data photos",
            "data set 'photos': not prepared in .*; for the folder or file here use ./photos",
        ),
        (
            "explain folder --data photos",
            "data set 'photos': not prepared in .*; for the folder or file here use ./photos",
        ),
        ("pretrain folder --data ./photos --model vit_small_patch16_224", "timm's is called S/16 here"),
        ("pretrain folder --data ./photos --model vit_tiny_patch16_224", "timm's is called Ti/16 here"),
        (
            "pretrain folder --data ./photos --mae.mask-ratio 0.75",
            "augmentation.cutmix: mae.mask_ratio uses no classes; set --augmentation.mixup 0 --augmentation.cutmix 0",
        ),
        ("predict x photos --json", "--json: write --to csv, jsonl or parquet; with --out FILE its name says which"),
        ("explain folder --data ./photo", "photo: No such file or directory; expected a readable folder"),
        ("explain folder --data ./empty", "empty/b: no images; add files such as .jpg or .png, or remove the folder"),
    ],
)
def test_first_mistakes(refused: Vit, photos: Path, words: str, message: str) -> None:
    for name in ("a", "b"):
        (photos.parent / "empty" / name).mkdir(parents=True)
    (photos.parent / "empty/a/1.jpg").write_text("")
    line = refused(*words.split())
    assert re.search(message, line), line


def test_few_images_and_random_weights(vit: Vit, photos: Path) -> None:
    hint = (
        "44 images are few for random weights; a published checkpoint usually reaches more: vit finetune folder --init"
    )
    assert hint in vit("explain", "folder", "--data", "./photos")
    masked = ["--mae.mask-ratio", "0.75", "--augmentation.mixup", "0", "--augmentation.cutmix", "0"]
    assert hint not in vit("explain", "folder", "--data", "./photos", *masked)
    assert hint not in vit("explain", "digits")


def test_explain_without_images_shows_the_recipe(vit: Vit, photos: Path) -> None:
    for words in (["explain", "folder"], ["explain", "folder", "--data", "photos_of_tfds"]):
        assert vit(*words).startswith("nothing is fitted to the data: ")


def test_explain_prints_notes_on_the_data(vit: Vit, photos: Path) -> None:
    (photos / "readme.txt").write_text("mine")
    assert "files that are not read as images: 1 .txt" in vit("explain", "folder", "--data", "./photos")


def test_another_length_in_the_folder_of_a_run(vit: Vit, refused: Vit, photos: Path) -> None:
    words = ["pretrain", "folder", "--data", "./photos", "--model", "mu/8", "--framework", "torch"]
    vit(*words, "--epochs", "3")
    kept = Path("runs/folder/run.json").read_text()
    message = "runs/folder: has a run of 16 steps, but --epochs 1 of these images are 6; vit resume runs/folder"
    assert message in refused(*words, "--epochs", "1")
    assert "batch_size is 8 there and 4 here" in refused(*words, "--epochs", "3", "--batch-size", "4")
    assert Path("runs/folder/run.json").read_text() == kept
    assert "this run is finished" in vit(*words, "--epochs", "3")


def test_uneven_classes_are_said_unless_they_are_weighed(vit: Vit, photos: Path) -> None:
    for folder in sorted(photos.iterdir())[1:]:
        for file in sorted(folder.iterdir())[2:]:
            file.unlink()
    for file in list(sorted(photos.iterdir())[0].iterdir()):
        for copy in range(3):
            file.with_name(f"{file.stem}-{copy}.png").write_bytes(file.read_bytes())
    words = ["pretrain", "folder", "--data", "./photos", "--model", "mu/8", "--framework", "torch", "--steps", "2"]
    line = "--class-weights balanced and --sampling balanced count rare classes more"
    assert line in vit(*words)
    assert line not in vit(*words, "--class-weights", "balanced", "--out", "weighed")
