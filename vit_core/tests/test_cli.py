"""The commands as a user types them: what they write, print and answer bad input with."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_core import CheckpointConfig, ViTConfig, cli, open_checkpoint, parity, save_checkpoint

MODEL = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    save_checkpoint(tmp_path / "checkpoint", CheckpointConfig(model=MODEL), arrays)
    return tmp_path / "checkpoint"


def vit(*words: object, status: int = 0) -> tuple[str, str]:
    """Runs the command in a process of its own; gives what it printed and what it complained of."""
    command = [sys.executable, "-c", "from vit_core.cli import main; main()", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The one line that bad input is answered with, exit status 2."""
    monkeypatch.setattr(sys, "argv", ["vit", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("vit: error: ")
    assert line.count("\n") == 1
    return line


def test_parity_says_yes(folder: Path) -> None:
    out, err = vit("parity", folder)
    assert "blocks.0.attn" in out
    assert "gradients, blocks.0" in out
    assert "bit for bit once rounded to float32: 6 of 6" in out
    assert "OUT" not in out
    assert err == ""


def test_to_another_project_and_back(folder: Path, tmp_path: Path) -> None:
    out, err = vit("convert", folder, tmp_path / "theirs", "--to", "timm")
    assert "read back: largest difference 0.0e+00" in out
    assert "timm itself: largest difference" in out
    assert err == ""
    out, _ = vit("convert", tmp_path / "theirs", tmp_path / "back")
    assert f"{tmp_path / 'theirs'}: timm" in out
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "back")
    assert {name: array.tobytes() for name, array in before.arrays.items()} == {
        name: array.tobytes() for name, array in after.arrays.items()
    }
    assert after.config.provenance.source_format == "timm"


def test_lossy_is_said(folder: Path, tmp_path: Path) -> None:
    out, _ = vit("convert", folder, tmp_path / "t.pth", "--to", "torchvision", "--allow-lossy", status=1)
    assert "lossy: torchvision has no activation gelu_tanh (there: gelu)" in out
    assert "torchvision itself: largest difference" in out


def test_what_a_file_cannot_tell_is_said_as_one_types_it(tmp_path: Path) -> None:
    model = MODEL.replace(image_size=(8, 12), position_resampling="bicubic")
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    save_checkpoint(tmp_path / "oblong", CheckpointConfig(model=model), arrays)
    out, _ = vit("convert", tmp_path / "oblong", tmp_path / "g.npz", "--to", "google")
    words = re.search("the file alone does not tell: (.*)", out)[1].split()
    assert words == ["--set", "image_size=8x12", "--set", "position_resampling=bicubic"]
    vit("convert", tmp_path / "g.npz", tmp_path / "again", *words)
    assert open_checkpoint(tmp_path / "again").config.model == model


def test_parity_of_two_files(folder: Path, tmp_path: Path) -> None:
    vit("convert", folder, tmp_path / "g.npz", "--to", "google", "--no-check")
    out, _ = vit("parity", folder, tmp_path / "g.npz")
    assert "blocks.0.attn" in out
    assert "OUT" not in out
    arrays = dict(open_checkpoint(folder).arrays)
    arrays["norm.bias"][0] += 1e-3
    save_checkpoint(tmp_path / "other", CheckpointConfig(model=MODEL), arrays)
    out, _ = vit("parity", tmp_path / "other", tmp_path / "g.npz", "--twins", "torch", "torch", status=1)
    assert "first divergence: norm" in out


def test_inspect(folder: Path, tmp_path: Path) -> None:
    arrays = dict(open_checkpoint(folder).arrays)
    arrays["head.weight"][:] = 0
    arrays["norm.bias"][0] = np.nan
    arrays["blocks.0.mlp.fc1.weight"][0, 0] = 1e6
    save_checkpoint(tmp_path / "odd", CheckpointConfig(model=MODEL), arrays)
    out, err = vit("inspect", tmp_path / "odd")
    assert "odd: vit, 947 parameters" in " ".join(out.split())
    for line in (
        "suspicious: head.weight: all zeros",
        "suspicious: norm.bias: 1 of 8 values are not finite",
        "suspicious: blocks.0.mlp.fc1.weight: an outlier of 1e+06, ",
    ):
        assert line in out
    assert err == ""
    report = json.loads(vit("inspect", folder, "--json")[0])
    assert report["format"] == "vit"
    assert report["grid"] == [2, 2]
    assert report["prefix_tokens"] == 1
    assert report["dtypes"] == {"float32": report["parameters"]}
    assert report["modules"]["norm"] == {"parameters": 16, "bytes": 64}
    assert report["suspicious"] == []
    assert ViTConfig(**report["config"]["model"]) == MODEL


def test_parity_in_bfloat16_prints_both_errors(folder: Path) -> None:
    out, _ = vit("parity", folder, "--dtype", "bfloat16")
    assert "JAX error" in out
    assert "blocks.0" in out


def test_parity_says_no(folder: Path) -> None:
    # What the bound holds apart shows when one twin is broken: here by an activation patched in a fresh process.
    program = (
        "import vit_torch.model as m, torch.nn.functional as F\n"
        "m.ACTIVATIONS['gelu_tanh'] = F.gelu\n"
        "from vit_core.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "parity", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "first divergence: blocks.0" in done.stdout


def test_a_zero_head_is_randomised_and_said(tmp_path: Path) -> None:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    arrays["head.weight"] *= 0
    save_checkpoint(tmp_path, CheckpointConfig(model=MODEL), arrays)
    out, _ = vit("parity", tmp_path)
    assert "constant, so given random values (they would prove nothing): head.weight" in out


def test_convert(folder: Path, tmp_path: Path) -> None:
    out, _ = vit(
        "convert",
        folder,
        tmp_path / "new",
        "--image-size",
        "12x16",
        "--num-classes",
        5,
        "--dtype",
        "bfloat16",
        "--method",
        "zoom_linear",
    )
    new = open_checkpoint(tmp_path / "new")
    assert "wrote" in out
    assert (new.config.model.image_size, new.config.model.num_classes) == ((12, 16), 5)
    assert new.arrays["pos_embed"].dtype.name == "bfloat16"
    assert new.config.provenance.source == "checkpoint"
    assert new.config.provenance.position_resampling[0].method == "zoom_linear"


def test_what_is_read_is_not_written_over(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for source, target, to in (
        (folder / "model.safetensors", folder, "transformers"),
        (folder, folder / "model.safetensors", "timm"),
        (folder, folder / "config.json", "vit"),
        (run, folder, "transformers"),
        (run, run / "sub" / ".." / "checkpoint", "vit"),
    ):
        said = refused(capsys, monkeypatch, "convert", source, target, "--to", to)
        assert "is what is read, or part of it; give the new one another name" in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in run.iterdir()] == ["checkpoint"]


def test_sincos_positions_become_learned_ones(tmp_path: Path) -> None:
    """Rounded to float32, which is said, and the proof allows for it."""
    model = MODEL.replace(position_embedding="sincos2d_mae", class_token_position=False, activation="gelu")
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    save_checkpoint(tmp_path / "checkpoint", CheckpointConfig(model=model), arrays)
    out, _ = vit("convert", tmp_path / "checkpoint", tmp_path / "timm", "--to", "timm")
    assert "positions: the table of 'sincos2d_mae', rounded to float32" in out
    assert re.search(r"timm itself: largest difference .*bound 1e-05", out)


def test_names_in_a_file_move_no_cursor(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    arrays = dict(load_file(folder / "model.safetensors")) | {"x\x1b[2J\nvit: ok": np.ones(1, np.float32)}
    save_file(arrays, tmp_path / "forged.safetensors")
    said = refused(capsys, monkeypatch, "convert", tmp_path / "forged.safetensors", tmp_path / "new")
    assert "\x1b" not in said
    assert "x [2J vit: ok" in said


def test_convert_takes_the_last_step_of_a_run(folder: Path, tmp_path: Path) -> None:
    for step in (3, 20):
        config = CheckpointConfig(model=MODEL, provenance={"step": step})
        save_checkpoint(tmp_path / "run" / "steps" / f"{step:06d}", config, dict(open_checkpoint(folder).arrays))
    vit("convert", tmp_path / "run", tmp_path / "new")
    assert open_checkpoint(tmp_path / "new").config.provenance.step == 20


def test_the_schema_describes_the_file(folder: Path) -> None:
    out, _ = vit("schema")
    written = json.loads((folder / "config.json").read_text())
    jsonschema.validate(written, json.loads(out))
    written["model"]["image_size"] = 8
    jsonschema.validate(written, json.loads(out))
    written["model"]["depht"] = 1
    with pytest.raises(jsonschema.ValidationError, match="depht"):
        jsonschema.validate(written, json.loads(out))


def test_a_nan_is_out_of_bounds(folder: Path) -> None:
    arrays = dict(open_checkpoint(folder).arrays.items())
    arrays["norm.bias"][0] = np.nan
    save_checkpoint(folder, CheckpointConfig(model=MODEL), arrays)
    for dtype in ("float64", "float32", "bfloat16"):
        out, err = vit("parity", folder, "--dtype", dtype, status=1)
        assert "OUT" in out
        assert "norm.bias holds values that are not finite" in err


def test_a_name_is_not_markup(folder: Path) -> None:
    strange = folder.rename(folder.parent / "p[red]q")
    assert "p[red]q: JAX and PyTorch" in vit("parity", strange)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "nowhere", "new"), "nowhere: no such checkpoint"),
        (
            ("convert", "checkpoint", "new", "--image-size", "9"),
            "9 is not a multiple of patch_size 4; the nearest is 8",
        ),
        (("convert", "checkpoint", "new", "--image-size", "8x8x8"), "expected pixels, as 384"),
        (("convert", "checkpoint", "new", "--method", "bicubik"), "did you mean 'bicubic'?"),
        (("convert", "checkpoint", "new", "--dtype", "float31"), "did you mean 'float32'?"),
        (("convert", "checkpoint", "file"), "file: cannot write there"),
        (("convert", "file", "new"), "file: neither safetensors nor .npz nor .pth"),
        (("parity", "nowhere"), "nowhere: no such checkpoint"),
        (("demo", "--out", "file"), "file: cannot write there"),
        (("convert", "checkpoint"), "Missing from vit convert: TARGET"),
        (("convert", "checkpoint", "new", "--to", "timn"), "--to"),
        (
            ("convert", "checkpoint", "./checkpoint"),
            "checkpoint: is what is read, or part of it; give the new one another name",
        ),
        (
            ("convert", "checkpoint", "new", "--to", "google"),
            "new: google is written as a .npz file; give it such a name",
        ),
        (("convert", "checkpoint", "new.npz"), "new.npz: vit is written as a folder; give it such a name"),
        (
            ("convert", "checkpoint", "t.bin", "--to", "timm"),
            "written as a folder or a .safetensors file or a .pth file",
        ),
        (("convert", "checkpoint", "t.pth", "--to", "torchvision"), "torchvision cannot hold activation gelu_tanh"),
        (("convert", "checkpoint", "new", "--set", "heads=4"), "its own config says heads"),
        (("convert", "checkpoint", "new", "--set", "head=4"), "did you mean 'heads'?"),
        (("convert", "checkpoint", "new", "--set", "heads"), "--set heads: expected field=value"),
        (("inspect", "nowhere"), "nowhere: no such checkpoint"),
        (("inspect", "file"), "file: neither safetensors nor .npz nor .pth"),
        (("bench", "convert", "--variant", "Q/16"), "unknown variant 'Q'"),
        (("parity", "checkpoint", "checkpoint", "--dtype", "float32"), "two checkpoints are compared in float64"),
        ((), "Expected one of {demo"),
        (("parity", "checkpoint", "--seed", "x"), "--seed"),
        (("convrt", "a", "b"), "did you mean 'convert'?"),
        (("parity", "checkpoint", "--dtyp", "float32"), "--dtype"),
        (("parity", "checkpoint", "--seed", "-1"), "--seed -1: expected 0 or more"),
        (("convert", "checkpoint", "new", "--num-classes", "1000000000000"), "num_classes: Input should be less"),
        (("convert", "checkpoint", "new", "--num-classes", "-1"), "num_classes: Input should be greater"),
        (("convert", "checkpoint", "new", "--image-size", "4" * 5000), "expected pixels"),
        (("convert", "checkpoint", "n" * 300), "File name too long"),
        (("convert", "n" * 300, "new"), "File name too long"),
        (("convert", "a[/b]", "new"), "a[/b]: no such checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    assert message in refused(capsys, monkeypatch, *words)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "file").read_text() == "text"


def test_not_finite_is_warned_of(folder: Path, tmp_path: Path) -> None:
    arrays = dict(open_checkpoint(folder).arrays.items())
    arrays["norm.bias"][0] = np.inf
    save_checkpoint(folder, CheckpointConfig(model=MODEL), arrays)
    out, err = vit("convert", folder, tmp_path / "new", status=1)
    assert "read back: not shown, the outputs are not finite" in out
    assert (
        err == f"vit: warning: {folder / 'model.safetensors'}: parameter norm.bias holds values that are not finite\n"
    )
