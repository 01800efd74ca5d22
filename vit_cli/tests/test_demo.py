"""The demo as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vit_jax
import vit_torch
from vit_core import open_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_demo(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vit_cli", "demo", "--out", tmp_path, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "something leaked"
    print(done.stdout)
    assert "OUT" not in done.stdout
    top1 = {
        stage: float(value) for stage, value in re.findall(r"^ *(pretrain|fine-tune) .* ([\d.]+)% ", done.stdout, re.M)
    }
    assert top1.keys() == {"pretrain", "fine-tune"}
    assert min(top1.values()) >= 98
    tuned = open_checkpoint(tmp_path / "finetune" / "checkpoint").config
    assert tuned.provenance.position_resampling[0].target == (6, 6)
    assert tuned.labels == tuple("0123456789")
    assert (
        vit_jax.load(tmp_path / "finetune" / "checkpoint").config
        == vit_torch.load(tmp_path / "finetune" / "checkpoint").config
    )
    for name in ("training_curves", "position_similarity", "patch_filters"):
        assert Image.open(tmp_path / f"{name}.png").size > (500, 300)
