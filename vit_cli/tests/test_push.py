"""`vit push`, against a stand-in for the Hub on this machine."""

import json
import re
from pathlib import Path

import pytest

from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random
from vit_core import Checkpoint, CheckpointConfig, Provenance, open_checkpoint, parity, save_checkpoint
from vit_core.checkpoints.checkpoint import Resampling
from vit_core.preprocess import Preprocessing
from vit_core.storage.tests.hub_server import TOKEN, Answer, Hub, Request, hub, use

__all__ = ["hub"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random(tmp_path / "checkpoint", MODEL.replace(position_resampling="bicubic_antialias"))


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def contents(path: str | Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in open_checkpoint(path).arrays.items()}


@pytest.mark.parametrize("format", ["vit", "timm", "transformers"])
def test_what_is_pushed_is_read_back(printed: Printing, hub: Hub, folder: Path, format: str) -> None:
    """Bit for bit, in one commit; no progress bar is printed into a file, and no token."""
    model = MODEL.replace(position_resampling="bicubic", norm_epsilon=1e-6)
    save_random(folder, model)
    lossy = ["--allow-lossy"] if format == "timm" else []
    result = printed("push", folder, "u/m", "--to", format, *lossy, "--message", "the first")
    commit = hub.repositories["u/m"].refs["main"]
    assert f"uploaded hf://u/m as commit {commit[:12]}: {hub.address}/u/m" in result.out
    assert TOKEN not in result.out
    assert result.err == ""
    assert contents("hf://u/m") == contents(folder)
    opened = open_checkpoint("hf://u/m")
    assert opened.format == format
    files = hub.repositories["u/m"].files()
    expected = {"README.md", "config.json", "model.safetensors", ".gitattributes"}
    assert set(files) - {"preprocessor_config.json"} == expected
    assert len(hub.repositories["u/m"].commits) == 2, "the one that created the repository, and one"
    (header,) = (json.loads(r.body.splitlines()[0]) for r in hub.log if "/commit/" in r.path)
    assert header["value"]["summary"] == "the first"


def test_a_card_of_a_model_for_images_of_any_aspect(vit: Vit, hub: Hub, folder: Path) -> None:
    made = Preprocessing(image_size=8, max_patches=20, patch_size=4, interpolation="bilinear")
    opened = open_checkpoint(folder)
    save_checkpoint(folder, opened.with_config(opened.config.replace(preprocessing=made)))
    vit("push", folder, "u/m")
    card = hub.repositories["u/m"].files()["README.md"].decode()
    assert "| size | of each image: at most 20 patches of 4 x 4 pixels |" in card
    assert "| resized by | one factor for both sides, rounded up to whole patches, bilinear |" in card


def test_a_newer_checkpoint_replaces_an_older_one(
    vit: Vit, refused: Vit, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    vit("push", folder, "u/m")
    newer = save_random(tmp_path / "newer", MODEL.replace(depth=2))
    vit("push", newer, "u/m")
    assert contents("hf://u/m") == contents(newer)
    line = refused("push", newer, "u/m", "--to", "transformers")
    assert "hf://u/m: contains a vit checkpoint, not a transformers checkpoint" in line
    hub.put("u/m", {**hub.repositories["u/m"].files(), "old.bin": b"x", "notes.txt": b"mine"})
    vit("push", newer, "u/m", "--to", "transformers", "--overwrite")
    assert open_checkpoint("hf://u/m").format == "transformers"
    assert "old.bin" not in hub.repositories["u/m"].files()
    assert hub.repositories["u/m"].files()["notes.txt"] == b"mine"


def test_a_branch(vit: Vit, hub: Hub, folder: Path, tmp_path: Path) -> None:
    vit("push", folder, "u/m")
    newer = save_random(tmp_path / "newer", MODEL.replace(depth=2))
    printed = vit("push", newer, "u/m", "--revision", "a/b")
    assert f"uploaded hf://u/m@a%2Fb as commit {hub.repositories['u/m'].refs['a/b'][:12]}" in printed
    assert contents("hf://u/m@a%2Fb") == contents(newer)
    assert contents("hf://u/m") == contents(folder)
    vit("push", folder, "u/new", "--revision", "b", "--private")
    assert hub.repositories["u/new"].private
    assert contents("hf://u/new@b") == contents(folder)
    assert set(hub.repositories["u/new"].files()) == {".gitattributes"}


def test_nothing_of_others_is_replaced(refused: Vit, hub: Hub, folder: Path) -> None:
    before = {
        "u/other": {"config.json": b"{}", "model.onnx": b"x"},
        "u/card": {"README.md": b"# mine"},
        "u/edited": {"README.md": b"# mine", **{f.name: f.read_bytes() for f in folder.iterdir()}},
    }
    for name, files in before.items():
        hub.put(name, files)
    assert "hf://u/other: contains other files (config.json, model.onnx), not a vit checkpoint" in refused(
        "push", folder, "u/other"
    )
    assert "hf://u/card: contains other files (README.md), not a vit checkpoint" in refused("push", folder, "u/card")
    assert "hf://u/edited/README.md: not written by vit push; choose" in refused("push", folder, "u/edited")
    assert "u/card: exists and is public; make it private on its page" in refused("push", folder, "u/card", "--private")
    assert {name: hub.repositories[name].files() for name in before} == before


@pytest.mark.parametrize(
    ("where", "answer", "line"),
    [
        ("/stored/", Answer(403, b"no"), "access refused"),
        ("/commit/", Answer(200, b"<html>"), "cannot reach"),
    ],
)
def test_an_upload_that_fails_changes_nothing(
    vit: Vit, refused: Vit, hub: Hub, folder: Path, tmp_path: Path, where: str, answer: Answer, line: str
) -> None:
    """The older checkpoint stays as it was, and the next push succeeds."""
    vit("push", folder, "u/m")
    before = dict(hub.repositories["u/m"].files())
    newer = save_random(tmp_path / "newer", MODEL.replace(depth=2))
    hub.instead = lambda request: answer if where in request.path and request.method in ("PUT", "POST") else None
    message = refused("push", newer, "u/m")
    assert message.startswith("vit: error: hf://u/m: ")
    assert line in message
    assert TOKEN not in message
    assert hub.repositories["u/m"].files() == before
    hub.instead = lambda request: None
    vit("push", newer, "u/m")
    assert contents("hf://u/m") == contents(newer)


def test_a_push_that_is_overtaken_changes_nothing(refused: Vit, hub: Hub, folder: Path) -> None:
    """Somebody commits while the weights are uploaded."""
    hub.put("u/m", {".gitattributes": b""})

    def overtake(request: Request) -> None:
        if request.method == "PUT":
            hub.put("u/m", {"theirs": b"x"})

    hub.instead = overtake
    assert "hf://u/m: another client changed the repository meanwhile; try again" in refused("push", folder, "u/m")
    assert hub.repositories["u/m"].files() == {"theirs": b"x"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["m"], "m: expected USER/MODEL: your name in the Hub, or an organization's, comes first"),
        (["u/m/x"], "u/m/x: expected USER/MODEL"),
        (["u/ m"], "u/ m: expected USER/MODEL"),
        (["others/m"], "hf://others/m: access refused (403"),
        (["u/m", "--to", "google"], "--to: unknown value 'google'; known: vit, timm, transformers"),
    ],
)
def test_wrong_words(refused: Vit, hub: Hub, folder: Path, words: list[str], line: str) -> None:
    assert line in refused("push", folder, *words)
    assert "u/m" not in hub.repositories


def test_without_the_hub(refused: Vit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "you are not logged in to the Hub; log in with hf auth login" in refused("push", folder, "u/m")
    use("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "hf://u/m: cannot reach http://127.0.0.1:9" in refused("push", folder, "u/m")
    monkeypatch.setattr("vit_core.storage.hub.find_spec", lambda name: None)
    assert "vit push: needs huggingface_hub: pip install 'vit-parity[hub]'" in refused("push", folder, "u/m")


def test_what_is_not_the_same_model_is_not_uploaded(
    vit: Vit, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_cli.conversion_check.ConversionCheck.ok", False)
    assert "nothing was uploaded" in vit("push", folder, "u/m", status=1)
    assert hub.repositories == {}


def test_the_card_of_a_checkpoint_without_a_run(vit: Vit, hub: Hub, tmp_path: Path) -> None:
    """Labels and names from outside neither become HTML nor end a cell."""
    provenance = Provenance(
        source="ViT|B.npz",
        source_format="google",
        position_resampling=(Resampling(method="bicubic", source=(2, 2), target=(4, 4)),),
    )
    labels = ("cat", "<script>alert(1)</script>", "a|b\x1b[31m")
    config = CheckpointConfig(model=MODEL, labels=labels, provenance=provenance)
    save_checkpoint(tmp_path / "c", Checkpoint.of(config, parity.randomized(MODEL, 0), "float32"))
    vit("push", tmp_path / "c", "u/m")
    card = hub.repositories["u/m"].files()["README.md"].decode()
    assert card.startswith("---\n")
    assert "library_name: vit-parity\n" in card
    assert "license" not in card
    assert "pipeline_tag: image-classification\n" in card
    assert 'vit_torch.load("hf://u/m")' in card
    assert r"0. cat" in card
    assert "1. &lt;script&gt;alert(1)&lt;/script&gt;" in card
    assert r"2. a\|b \[31m" in card
    assert r"| converted from | ViT\|B.npz (google) |" in card
    assert "| position embeddings resampled | 2 x 2 to 4 x 4 patches by bicubic, not trained since |" in card
    assert "- read back: largest difference 0.0e+00 (relative 0.0e+00, bound 1e-12)" in card
    assert "## Evaluation" not in card
    assert str(tmp_path) not in card


def test_the_card_of_a_run(vit: Vit, hub: Hub, recipe: str, tmp_path: Path) -> None:
    """Accuracy with the interval that the run printed, its data without their folder, its options."""
    printed = vit("pretrain", recipe, "--out", tmp_path / "run", "--framework", "torch")
    vit("push", tmp_path / "run", "u/m", "--to", "transformers", "--revision", "v1", "--license", "cc-by-nc-4.0")
    card = hub.repositories["u/m"].files("v1")["README.md"].decode()
    (line,) = (line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "top1" in line)
    logged = json.loads(line)
    low, high = logged["top1_interval"]
    assert re.search(rf"{logged['top1']:.2%} +{low:.2%} - {high:.2%}", printed)
    assert f"| top-1 accuracy | {logged['top1']:.2%} | {low:.2%} - {high:.2%} |" in card
    assert "license: cc-by-nc-4.0\n" in card
    assert "On images, the images that training evaluates on:" in card
    assert str(tmp_path.parent) not in card
    for row in ("| run | run |", "| steps | 8 |", "| data | images |", "| batch size | 16 |", "| seed | 0 |"):
        assert row in card
    assert "| optimizer | adamw, learning rate 0.003, weight decay 0 |" in card
    assert f"value: {round(logged['top1'], 6)}" in card
    assert 'AutoModelForImageClassification.from_pretrained("u/m", revision="v1")' in card
    assert "- transformers itself: largest difference" in card


@pytest.mark.parametrize("command", ["inspect", "parity", "convert"])
def test_commands_take_addresses(vit: Vit, refused: Vit, hub: Hub, folder: Path, tmp_path: Path, command: str) -> None:
    hub.put("u/m", {file.name: file.read_bytes() for file in folder.iterdir()})
    target = [tmp_path / "out"] if command == "convert" else []
    printed = vit(command, "hf://u/m", *target)
    assert "hf://u/none: no such repository" in refused(command, "hf://u/none", *target)
    if command != "convert":
        assert "hf://u/m" in printed
    else:
        assert contents(target[0]) == contents(folder)
        assert "run vit push CHECKPOINT u/m" in refused("convert", folder, "hf://u/m")


def test_a_dry_run_prints_what_would_be_uploaded(
    vit: Vit, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a login and without a request; the files and the card are those that are uploaded then."""
    monkeypatch.delenv("HF_TOKEN")
    out = vit("push", folder, "u/m", "--to", "transformers", "--allow-lossy", "--dry-run")
    assert not hub.log
    assert "dry run: nothing was uploaded to hf://u/m" in out
    assert "expected USER/MODEL" in vit("push", folder, "m", "--dry-run", status=2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    vit("push", folder, "u/m", "--to", "transformers", "--allow-lossy")
    files = hub.repositories["u/m"].files()
    for name in files.keys() - {".gitattributes"}:
        assert f" {name} " in out, name
    assert files["README.md"].decode().strip() in out
