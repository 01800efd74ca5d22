"""Options as people type them from other projects: read as ours, or answered with the right name."""

from pathlib import Path
from typing import Any

import pytest

from vit_cli.application import COMMANDS, build, parse
from vit_cli.other_spellings import HINTS, SAME
from vit_cli.tests.printed import Vit
from vit_core.errors import InputError


def options_of_command(name: str) -> set[str]:
    app = build(with_summaries=False)
    return {word for argument in app[name].assemble_argument_collection() for word in argument.names}


@pytest.mark.parametrize("command", SAME)
def test_every_spelling_stands_for_an_option_of_the_command(command: str) -> None:
    known = options_of_command(command)
    for typed, own in SAME[command].items():
        if own == "--out" and command in ("explain", "plan", "resume"):
            continue  # they write no new folder, and refuse the option
        if own == "--epochs" and command in ("plan", "resume"):
            continue
        assert own in known, (command, typed)
        assert typed not in known, "it would hide the command's own option"


@pytest.mark.parametrize("command", HINTS)
def test_no_hint_is_for_an_option_that_the_command_has(command: str) -> None:
    assert command in COMMANDS
    assert not HINTS[command].keys() & (options_of_command(command) | SAME.get(command, {}).keys())


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        (["--lr", "1e-4"], ("optimizer", "learning_rate"), 1e-4),
        (["--learning_rate=1e-4"], ("optimizer", "learning_rate"), 1e-4),
        (["-b", "64"], ("batch_size",), 64),
        (["--batch", "64"], ("batch_size",), 64),
        (["--img-size", "48", "96"], ("model", "image_size"), (48, 96)),
        (["--image-size", "48x96"], ("model", "image_size"), (48, 96)),
        (["--image-size=48 96"], ("model", "image_size"), (48, 96)),
        (["--image-size", "48 x 96"], ("model", "image_size"), (48, 96)),
        (["--data", "./photos"], ("data", "name"), "./photos"),
        (["--data-dir", "/d"], ("data", "directory"), "/d"),
        (["--held-out", "0.2"], ("data", "held_out"), 0.2),
        (["--clip-grad", "none"], ("optimizer", "clip_norm"), None),
    ],
)
def test_what_people_type_is_read(typed: list[str], field: tuple[str, ...], value: Any) -> None:
    for command in (["pretrain", "folder"], ["finetune", "folder", "--init", "x"], ["explain", "folder"]):
        bound = parse([*command, *typed]).arguments
        assert bound.kwargs["__".join(field)] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pretrain", "folder", "--wandb"), "TensorBoard events"),
        (("pretrain", "folder", "--amp"), "--amp: write --compute-dtype bfloat16"),
        (("pretrain", "folder", "--resume", "runs/x"), "write vit resume RUN"),
        (("evaluate", "runs/x", "--out", "x.json"), "--out: write --json FILE for all numbers"),
        (("finetune", "folder", "--pretrained"), "write vit finetune RECIPE --init CHECKPOINT"),
        (("pretrain", "folder", "--init", "x"), "use vit finetune RECIPE --init CHECKPOINT"),
        (("convert", "a", "--out", "b"), "vit convert SOURCE TARGET"),
        (("prepare", "--data", "./photos"), "vit prepare FOLDER --out OUT"),
        (("pretrain", "folder", "--steps", "3", "--epochs", "2"), "--epochs and --steps both set the length"),
        (("pretrain", "folder", "--epochs", "0"), "--epochs 0: expected more than 0"),
        (("pretrain", "folder", "--model", "Q/16"), "unknown variant 'Q'"),
        (("pretrain", "folder", "--model", "vit_tiny"), "unknown variant 'vit_tiny'; timm's is called Ti/16 here"),
        (("pretrain", "folder", "--model", "B"), "does not name its patch size; write, for example, 'B/16'"),
    ],
)
def test_the_right_name_is_answered(words: tuple[str, ...], message: str, refused: Vit) -> None:
    assert message in refused(*words)


def test_one_name_for_a_thing_in_all_commands() -> None:
    """Data, the directory of prepared sets, and the image size."""
    for name in ("--data", "--data-dir", "--image-size"):
        for command in ("explain", "pretrain", "finetune", "plan", "evaluate"):
            assert name in options_of_command(command), (command, name)
    with pytest.raises(InputError):
        parse(["evaluate", "x", "--image-size", "big"])
    for words in (["--data.name", "./photos"], ["--data", "./photos"]):
        assert parse(["evaluate", "x", *words]).arguments.kwargs["data"].name == "./photos"
    assert parse(["convert", "a", "b", "--model.image-size", "48", "96"]).arguments.kwargs["image_size"] == (48, 96)


def test_every_command_that_opens_a_checkpoint_has_the_options_that_its_notes_advise() -> None:
    for command in ("inspect", "convert", "evaluate", "finetune", "explain", "parity"):
        assert options_of_command(command) >= {"--from", "--set", "--part"}, command


def test_a_refusal_of_the_system_names_the_file(refused: Vit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "x").touch()
    monkeypatch.setattr(Path, "exists", forbidden)
    assert refused("inspect", tmp_path / "x") == f"vit: error: {tmp_path / 'x'}: Permission denied\n"


@pytest.mark.slow
def test_the_version_and_the_help_of_a_recipe_without_a_checkpoint(vit: Vit) -> None:
    from importlib.metadata import version

    assert vit("--version") == f"{version('vit-parity')}\n"
    text = " ".join(vit("finetune", "folder", "--help").replace("│", " ").split())
    assert "--optimizer.layer-decay" in text
    assert "[default: 0.75]" in text
    shown = " ".join(vit("resume", "--help").replace("│", " ").split())
    assert "--batch-size" in shown
    assert "--optimizer.learning-rate" in shown
    assert "--seed" not in shown, "it would be another run"
    for shell in ("bash", "zsh", "fish"):
        script = vit("completion", shell)
        assert "resume" in script
        assert "optimizer.learning-rate" in script
