"""`vit pretrain` as processes of their own, for tests that kill them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from vit_core import open_checkpoint
from vit_train.metrics import curve, read_metrics

RECIPE = """
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig
from vit_core import ViTConfig

def pretrain():
    return TrainConfig(
        model=ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4,
                        stochastic_depth=0.3),
        data=Data(name={folder!r}),
        augmentation=Augmentation(crop_area=(0.5, 1.0), flip=0.5, rotation=10, mixup=0.3, cutmix=1.0),
        optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=Schedule(warmup_steps=3), ema=0.9, label_smoothing=0.1,
        steps=40, batch_size=16, save_every=7, log_every=1, fingerprints=True, workers=1, threads=1, tensorboard=False,
    )
"""


def start(recipe: Path, out: str, *words: str) -> subprocess.Popen[bytes]:
    """Starts `vit pretrain` as a process; what it prints is appended to a log beside the recipe."""
    return start_command(recipe.parent / "log", "pretrain", str(recipe), *words, "--out", str(recipe.parent / out))


def start_command(log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Starts a `vit` command as a process; what it prints is appended to a log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", "vit_cli", *words], stdout=file, stderr=file, env=environment)


def logged(run: Path) -> int:
    """The last step in the log of a run."""
    return max((line["step"] for line in read_metrics(run / "metrics.jsonl")), default=0)


def assert_the_same_run(cut: Path, whole: Path, steps: int) -> None:
    """The same batches and losses, and bit for bit the same weights and moving average."""
    for what in ("fingerprint", "loss"):
        assert curve(read_metrics(cut / "metrics.jsonl"), what) == curve(read_metrics(whole / "metrics.jsonl"), what)
    assert len(set(curve(read_metrics(cut / "metrics.jsonl"), "fingerprint")[1])) == steps
    for folder in ("checkpoint", "checkpoint_ema"):
        expected, found = (dict(open_checkpoint(run / folder).arrays) for run in (whole, cut))
        for parameter in expected:
            np.testing.assert_array_equal(found[parameter], expected[parameter])
