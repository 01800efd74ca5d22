"""Bad input on the command line: one line that says what is wrong, exit status 2, nothing written."""

from pathlib import Path

import pytest

from vit_cli.tests.printed import Vit
from vit_cli.tests.random_checkpoints import save_random


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "nowhere", "new"), "nowhere: no such checkpoint"),
        (
            ("convert", "checkpoint", "new", "--image-size", "9"),
            "9 is not a multiple of patch_size 4; the nearest is 8",
        ),
        (
            ("convert", "checkpoint", "new", "--image-size", "8x8x8"),
            "--image-size: image size '8x8x8': expected pixels",
        ),
        (("convert", "checkpoint", "new", "--method", "bicubik"), "did you mean 'bicubic'?"),
        (("convert", "checkpoint", "new", "--dtype", "float31"), "did you mean 'float32'?"),
        (("convert", "checkpoint", "file"), "file: exists and is not a vit checkpoint"),
        (("convert", "checkpoint", "file", "--overwrite"), "file: cannot write there"),
        (("convert", "file", "new"), "expected safetensors, .npz, .pth"),
        (("parity", "nowhere"), "nowhere: no such checkpoint"),
        (("demo", "--out", "file"), "file: cannot write there"),
        (("convert", "checkpoint"), "vit convert: the argument TARGET is missing; see vit convert --help"),
        (("convert", "checkpoint", "new", "--to", "timn"), "--to: unknown value 'timn'; did you mean 'timm'?"),
        (
            ("convert", "checkpoint", "new", "--to", "peft"),
            "--to peft: adapters without their base are not converted: a run with --lora.rank",
        ),
        (("convert", "checkpoint", "new", "--to", "onnx"), "--to onnx: write vit export SOURCE TARGET.onnx"),
        (
            ("convert", "checkpoint", "./checkpoint"),
            "checkpoint: is the source or a part of it; choose another target",
        ),
        (
            ("convert", "checkpoint", "new", "--to", "google"),
            "new: google is written as a .npz file; choose a name of that kind",
        ),
        (("convert", "checkpoint", "new.npz"), "new.npz: vit is written as a folder; choose a name of that kind"),
        (
            ("convert", "checkpoint", "t.bin", "--to", "timm"),
            "written as a folder or a .safetensors file or a .pth file",
        ),
        (("convert", "checkpoint", "t.pth", "--to", "torchvision"), "torchvision cannot express activation gelu_tanh"),
        (("convert", "checkpoint", "new", "--set", "heads=4"), "its own config has heads"),
        (("convert", "checkpoint", "new", "--set", "head=4"), "did you mean 'heads'?"),
        (("convert", "checkpoint", "new", "--set", "heads"), "--set heads: expected FIELD=VALUE"),
        (("inspect", "nowhere"), "nowhere: no such checkpoint"),
        (("inspect", "file"), "expected safetensors, .npz, .pth"),
        (("bench", "convert", "--variant", "Q/16"), "unknown variant 'Q'"),
        (("bench", "convert", "--repeats", "0"), "--repeats 0: expected 1 or more"),
        (("parity", "checkpoint", "checkpoint", "--dtype", "float32"), "two checkpoints are compared in float64"),
        ((), "expected one of demo, "),
        (("prepare", ".", "--out", "new", "--workers", "0"), "--workers 0: expected 1 or more"),
        (("prepare", ".", "--out", "new", "--shard-size-mib", "0"), "--shard-size-mib 0: expected 1 or more"),
        (("probe", "x.npy", "--shots", "3", "--shots", "0"), "--shots 0: expected 1 or more"),
        (("parity", "checkpoint", "--seed", "x"), "--seed x: expected an integer"),
        (("convrt", "a", "b"), "unknown command 'convrt'; did you mean 'convert'?"),
        (("parity", "checkpoint", "--dtyp", "float32"), "vit parity: unknown option '--dtyp'; did you mean '--dtype'?"),
        (("parity", "checkpoint", "--dtyp=float32"), "vit parity: unknown option '--dtyp'; did you mean '--dtype'?"),
        (("parity", "checkpoint", "--dtype"), "vit parity: --dtype needs a value; see vit parity --help"),
        (("parity", "checkpoint", "--dtype", "float32", "--dtype", "float64"), "--dtype is given twice; remove one"),
        (("parity", "a", "b", "c"), "vit parity: unexpected 'c'; see vit parity --help"),
        (("explain", "cifar10", "--augmentation.random-crop", "false"), "write --augmentation.random-crop=false"),
        (("explain", "cifar10", "--no-augmentation.random-crop"), "write --augmentation.no-random-crop"),
        (("explain", "cifar10", "--no-augmentation.mixup"), "did you mean '--augmentation.mixup'?"),
        (("parity", "checkpoint", "--twins", "jax"), "vit parity: --twins needs 2 values; see vit parity --help"),
        (("parity", "checkpoint", "--twins", "jax", "torhc"), "--twins: unknown value 'torhc'; did you mean 'torch'?"),
        (("parity", "checkpoint", "--every-parameter=maybe"), "--every-parameter maybe: expected true or false"),
        (("parity", "checkpoint", "--seed", "-1"), "--seed -1: expected 0 or more"),
        (("convert", "checkpoint", "new", "--num-classes", "1000000000000"), "num_classes: expected at most"),
        (("convert", "checkpoint", "new", "--num-classes", "-1"), "num_classes: expected 0 or more"),
        (("convert", "checkpoint", "new", "--image-size", "4" * 5000), "expected pixels"),
        (("convert", "checkpoint", "n" * 300), "File name too long"),
        (("convert", "n" * 300, "new"), "File name too long"),
        (("convert", "a[/b]", "new"), "a[/b]: no such checkpoint"),
        (("convert", "ftp://host/a", "new"), "ftp://host/a: expected a folder or one of gs://"),
        (("completion", "tcsh"), "unknown value 'tcsh'"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, refused: Vit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random(tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    line = refused(*words)
    assert message in line
    assert not set(line) & set("╭│╰─"), "no drawing"
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "file").read_text() == "text"
