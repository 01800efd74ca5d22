"""The commands on checkpoints as a user types them: what they write and print."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.random_checkpoints import MODEL, save_random, set_to
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, open_checkpoint, save_checkpoint
from vit_core.preprocess import Preprocessing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random(tmp_path / "checkpoint")


@pytest.mark.slow
def test_parity_says_yes_and_nothing_else(folder: Path) -> None:
    """In a process of its own: what libraries print when they start would be seen here (libtpu without a TPU)."""
    command = [sys.executable, "-m", "vit_cli", "parity", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "blocks.0.attn" in done.stdout
    assert "gradients, blocks.0" in done.stdout
    assert "bit for bit once rounded to float32: 6 of 6" in done.stdout
    assert "OUT" not in done.stdout
    assert done.stderr == ""


def test_to_another_project_and_back(printed: Printing, folder: Path, tmp_path: Path) -> None:
    result = printed("convert", folder, tmp_path / "theirs", "--to", "timm")
    assert "read back: largest difference 0.0e+00" in result.out
    assert "timm itself: largest difference" in result.out
    assert result.err == ""
    result = printed("convert", tmp_path / "theirs", tmp_path / "back")
    assert f"{tmp_path / 'theirs'}: timm" in result.out
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "back")
    assert {name: array.tobytes() for name, array in before.arrays.items()} == {
        name: array.tobytes() for name, array in after.arrays.items()
    }
    assert after.config.provenance.source_format == "timm"


def test_lossy_is_noted(vit: Vit, folder: Path, tmp_path: Path) -> None:
    out = vit("convert", folder, tmp_path / "t.pth", "--to", "torchvision", "--allow-lossy", status=1)
    assert "lossy: torchvision cannot express activation gelu_tanh (it has gelu)" in out
    assert "torchvision itself: largest difference" in out


def test_what_a_file_does_not_contain_is_printed_as_one_types_it(vit: Vit, tmp_path: Path) -> None:
    model = MODEL.replace(image_size=(8, 12), position_resampling="bicubic")
    save_random(tmp_path / "oblong", model)
    out = vit("convert", tmp_path / "oblong", tmp_path / "g.npz", "--to", "google")
    printed_words = re.search("the file alone does not contain: (.*)", out)
    assert printed_words is not None
    words = printed_words[1].split()
    assert words == ["--set", "image_size=8x12", "--set", "position_resampling=bicubic"]
    vit("convert", tmp_path / "g.npz", tmp_path / "again", *words)
    assert open_checkpoint(tmp_path / "again").config.model == model


def test_what_was_assumed_is_not_proved(vit: Vit, tmp_path: Path) -> None:
    save_random(tmp_path / "ours", MODEL)
    vit("convert", tmp_path / "ours", tmp_path / "t.pth", "--to", "timm")
    given = ("--set", "activation=gelu_tanh", "--set", "heads=2", "--set", "norm_epsilon=1e-6")
    out = vit("convert", tmp_path / "t.pth", tmp_path / "a", *given)
    (line,) = (line for line in out.splitlines() if line.startswith("not verified: "))
    fields = "image_size=8x8 pooling=cls position_resampling=bicubic_antialias branch_norm=before"
    assert line.startswith(f"not verified: {fields}; the source")
    out = vit("convert", tmp_path / "a", tmp_path / "b")
    assert "not verified" not in out


def test_parity_of_two_files(vit: Vit, folder: Path, tmp_path: Path) -> None:
    vit("convert", folder, tmp_path / "g.npz", "--to", "google", "--no-check")
    out = vit("parity", folder, tmp_path / "g.npz")
    assert "blocks.0.attn" in out
    assert "OUT" not in out
    arrays = dict(open_checkpoint(folder).arrays)
    arrays["norm.bias"][0] += 1e-3
    save_checkpoint(tmp_path / "other", Checkpoint.of(CheckpointConfig(model=MODEL), arrays))
    out = vit("parity", tmp_path / "other", tmp_path / "g.npz", "--twins", "torch", "torch", status=1)
    assert "first divergence: norm" in out


def test_inspect(printed: Printing, folder: Path, tmp_path: Path) -> None:
    save_random(
        tmp_path / "odd",
        head_weight=set_to(0),
        norm_bias=set_to(np.nan, 0),
        blocks_0_mlp_fc1_weight=set_to(1e6, 0, 0),
    )
    result = printed("inspect", tmp_path / "odd")
    assert "odd: vit, 947 parameters" in " ".join(result.out.split())
    for line in (
        "suspicious: head.weight: all zeros",
        "suspicious: norm.bias: 1 of 8 values are not finite",
        "suspicious: blocks.0.mlp.fc1.weight: an outlier of 1e+06, ",
    ):
        assert line in result.out
    assert result.err == ""


def test_inspect_as_json(vit: Vit, folder: Path) -> None:
    report = json.loads(vit("inspect", folder, "--json"))
    assert report["format"] == "vit"
    assert report["grid"] == [2, 2]
    assert report["prefix_tokens"] == 1
    assert report["dtypes"] == {"float32": report["parameters"]}
    assert report["modules"]["norm"] == {"parameters": 16, "bytes": 64}
    assert report["suspicious"] == []
    assert ViTConfig(**report["config"]["model"]) == MODEL


def test_inspect_prints_how_images_are_made(vit: Vit, folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    made = Preprocessing(image_size=8, mean=(0.485, 0.456, 0.406), crop_fraction=0.875, exif_rotation=True)
    save_checkpoint(tmp_path / "other", checkpoint.with_config(checkpoint.config.replace(preprocessing=made)))
    fields = "mean=0.485,0.456,0.406 std=0.5,0.5,0.5 resize=crop crop_fraction=0.875 interpolation=bicubic"
    assert f"preprocessing: 8x8 pixels, {fields} exif_rotation=true\n" in vit("inspect", tmp_path / "other")
    report = json.loads(vit("inspect", tmp_path / "other", "--json"))
    assert Preprocessing(**report["config"]["preprocessing"]) == made
    assert "preprocessing: the checkpoint does not record how its images were made; assumed mean=0.5,0.5,0.5" in vit(
        "inspect", folder
    )


def test_parity_in_bfloat16_prints_both_errors(vit: Vit, folder: Path) -> None:
    out = vit("parity", folder, "--dtype", "bfloat16")
    assert "JAX error" in out
    assert "PyTorch error" in out
    assert "blocks.0" in out


def test_parity_says_no(vit: Vit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One twin is broken, by another activation."""
    import torch.nn.functional as F

    import vit_torch.mlp

    monkeypatch.setitem(vit_torch.mlp.ACTIVATIONS, "gelu_tanh", F.gelu)
    assert "first divergence: blocks.0" in vit("parity", folder, status=1)


def test_a_zero_head_is_randomised_and_printed(vit: Vit, tmp_path: Path) -> None:
    save_random(tmp_path / "zero", head_weight=set_to(0))
    out = vit("parity", tmp_path / "zero")
    assert "constant parameters, given random values so that they affect the outputs: head.weight" in out


def test_convert(vit: Vit, folder: Path, tmp_path: Path) -> None:
    changes = ("--image-size", "12x16", "--num-classes", 5, "--dtype", "bfloat16", "--method", "zoom_linear")
    out = vit("convert", folder, tmp_path / "new", *changes)
    new = open_checkpoint(tmp_path / "new")
    assert "wrote" in out
    assert (new.config.model.image_size, new.config.model.num_classes) == ((12, 16), 5)
    assert new.arrays["pos_embed"].dtype.name == "bfloat16"
    assert new.config.provenance.source == "checkpoint"
    assert new.config.provenance.position_resampling[0].method == "zoom_linear"


def test_a_size_may_be_two_words(vit: Vit, folder: Path, tmp_path: Path) -> None:
    vit("convert", "--image-size", 12, 16, folder, tmp_path / "new", "--no-check")
    assert open_checkpoint(tmp_path / "new").config.model.image_size == (12, 16)


def test_the_source_is_not_overwritten(refused: Vit, folder: Path) -> None:
    run = folder.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for source, target, to in (
        (folder / "model.safetensors", folder, "transformers"),
        (folder, folder / "model.safetensors", "timm"),
        (folder, folder / "config.json", "vit"),
        (run, folder, "transformers"),
        (run, run / "sub" / ".." / "checkpoint", "vit"),
    ):
        for overwrite in ((), ("--overwrite",)):
            message = refused("convert", source, target, "--to", to, *overwrite)
            assert "is the source or a part of it; choose another target" in message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in run.iterdir()] == ["checkpoint"]


def test_another_kind_of_target_needs_overwrite(vit: Vit, refused: Vit, folder: Path, tmp_path: Path) -> None:
    """config.json and weights of another project; files that do not belong to a checkpoint are kept."""
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text('{"model_type": "bert"}')
    (hub / "pytorch_model.bin").write_bytes(b"old")
    (hub / "README.md").write_text("text")
    before = {path: path.read_bytes() for path in hub.iterdir()}
    message = refused("convert", folder, hub, "--to", "timm")
    assert "add --overwrite" in message
    assert {path: path.read_bytes() for path in hub.iterdir()} == before
    vit("convert", folder, hub, "--to", "timm", "--overwrite")
    assert {path.name for path in hub.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert open_checkpoint(hub).format == "timm"
    vit("convert", folder, hub, "--to", "timm")  # over a checkpoint of the same kind
    (hub / "pytorch_model.bin").write_bytes(b"old")
    assert "pytorch_model.bin would remain beside the new weights" in refused("convert", folder, hub, "--to", "timm")


def test_a_run_is_not_written_into(refused: Vit, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "steps").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    for target in (run, run / "checkpoint", run / "checkpoint_ema", run / "steps" / "000100"):
        assert "training run" in refused("convert", folder, target, "--overwrite")
    assert {path.name for path in run.iterdir()} == {"steps", "run.json"}


def test_a_data_folder_is_not_written_into(refused: Vit, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "cats" / "1.png").write_bytes(b"an image")
    assert "photos: contains other files (cats)" in refused("convert", folder, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cats"]


def test_a_file_of_another_format_needs_overwrite(vit: Vit, refused: Vit, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", numbers=np.arange(3))
    before = (tmp_path / "data.npz").read_bytes()
    message = refused("convert", folder, tmp_path / "data.npz", "--to", "google")
    assert "data.npz: exists and is not a google checkpoint; choose another name, or add --overwrite" in message
    assert (tmp_path / "data.npz").read_bytes() == before
    vit("convert", folder, tmp_path / "data.npz", "--to", "google", "--overwrite", "--no-check")
    vit("convert", folder, tmp_path / "data.npz", "--to", "google", "--no-check")
    assert open_checkpoint(tmp_path / "data.npz").format == "google"


def test_options_that_a_checkpoint_of_ours_does_not_need_are_refused(
    refused: Vit, folder: Path, tmp_path: Path
) -> None:
    for command in (("inspect", folder), ("convert", folder, tmp_path / "new"), ("parity", folder)):
        assert "its own config has heads; edit config.json instead of --set" in refused(*command, "--set", "heads=2")
    assert "leave out --from timm" in refused("convert", folder, tmp_path / "new", "--from", "timm")
    assert not (tmp_path / "new").exists()


def test_sincos_positions_become_learned_ones(vit: Vit, tmp_path: Path) -> None:
    """Rounded to float32, which is noted, and the check allows for it."""
    model = MODEL.replace(position_embedding="sincos2d_mae", class_token_position=False, activation="gelu")
    save_random(tmp_path / "checkpoint", model)
    out = vit("convert", tmp_path / "checkpoint", tmp_path / "timm", "--to", "timm")
    assert "positions: the table of 'sincos2d_mae', rounded to float32" in out
    assert re.search(r"timm itself: largest difference .*bound 1e-05", out)


def test_names_in_a_file_move_no_cursor(refused: Vit, folder: Path, tmp_path: Path) -> None:
    arrays = dict(load_file(folder / "model.safetensors")) | {"x\x1b[2J\nvit: ok": np.ones(1, np.float32)}
    save_file(arrays, tmp_path / "forged.safetensors")
    message = refused("convert", tmp_path / "forged.safetensors", tmp_path / "new")
    assert "\x1b" not in message
    assert "x [2J vit: ok" in message


def test_convert_takes_the_last_step_of_a_run(vit: Vit, folder: Path, tmp_path: Path) -> None:
    for step in (3, 20):
        config = CheckpointConfig(model=MODEL, provenance={"step": step})
        checkpoint = Checkpoint.of(config, dict(open_checkpoint(folder).arrays))
        save_checkpoint(tmp_path / "run" / "steps" / f"{step:06d}", checkpoint)
    vit("convert", tmp_path / "run", tmp_path / "new")
    assert open_checkpoint(tmp_path / "new").config.provenance.step == 20


def test_the_schema_describes_the_file(vit: Vit, folder: Path) -> None:
    schema = json.loads(vit("schema"))
    written = json.loads((folder / "config.json").read_text())
    jsonschema.validate(written, schema)
    written["model"]["image_size"] = 8
    jsonschema.validate(written, schema)
    written["model"]["depht"] = 1
    with pytest.raises(jsonschema.ValidationError, match="depht"):
        jsonschema.validate(written, schema)


def test_a_nan_is_out_of_bounds(printed: Printing, tmp_path: Path) -> None:
    folder = save_random(tmp_path / "nan", norm_bias=set_to(np.nan, 0))
    for dtype in ("float64", "float32", "bfloat16"):
        result = printed("parity", folder, "--dtype", dtype, status=1)
        assert "OUT" in result.out
        assert "norm.bias has values that are not finite" in result.err


def test_a_name_is_not_markup(vit: Vit, folder: Path) -> None:
    strange = folder.rename(folder.parent / "p[red]q")
    assert "p[red]q: JAX and PyTorch" in vit("parity", strange)


def test_values_that_are_not_finite_are_warned_of(printed: Printing, tmp_path: Path) -> None:
    folder = save_random(tmp_path / "inf", norm_bias=set_to(np.inf, 0))
    result = printed("convert", folder, tmp_path / "new", status=1)
    assert "read back: cannot be compared, the outputs are not finite" in result.out
    weights = folder / "model.safetensors"
    assert result.err == f"vit: warning: {weights}: parameter norm.bias has values that are not finite\n"


def test_conversion_into_a_store(vit: Vit, folder: Path, tmp_path: Path) -> None:
    """Written, read back and opened by the format's own library, whether a folder or a file."""
    for target, to in (("memory://bucket/hub", "timm"), ("memory://bucket/g.npz", "google")):
        out = vit("convert", folder, target, "--to", to)
        assert "read back: largest difference 0.0e+00" in out
        assert f"{to} itself: largest difference" in out
    vit("convert", "memory://bucket/hub", tmp_path / "back")
    assert open_checkpoint(tmp_path / "back").config.provenance.source_format == "timm"
