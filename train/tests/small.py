"""A small run on images made here: four classes, each a bright quadrant in noise."""

import io
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train.config import Augmentation, Optimizer, Schedule, TrainConfig
from train.engine_jax import JaxEngine
from train.engine_torch import TorchEngine
from train.run import Engine, Request, Run
from train.sources import Split
from vit_core import ViTConfig

MODEL = ViTConfig(
    image_size=8, patch_size=4, channels=1, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4, stochastic_depth=0.2
)
CONFIG = TrainConfig(
    model=MODEL,
    augmentation=Augmentation(rotation=10, shift=0.1, mixup=0.1),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
    schedule=Schedule(warmup_steps=3),
    steps=12,
    batch_size=16,
    log_every=5,
    evaluation_batch=32,
    tensorboard=False,
)
ENGINES: dict[str, Any] = {"jax": JaxEngine, "torch": TorchEngine}
LABELS = ("northeast", "northwest", "southeast", "southwest")


def png(label: int, rng: np.random.Generator, side: int = 8) -> bytes:
    """An image of a class."""
    pixels, half = rng.integers(0, 80, (side, side), np.uint8), side // 2
    pixels[(label // 2) * half :][:half, (label % 2) * half :][:, :half] += 120
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def quadrants(count: int = 64, seed: int = 0) -> Split:
    """So many images in memory."""
    rng = np.random.default_rng(seed)
    return Split([{"image": png(i % 4, rng), "label": i % 4} for i in range(count)], LABELS, "quadrants")


def folder_of_images(folder: Path, count: int = 64, seed: int = 0) -> Path:
    """The same as PNG files in class folders."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / LABELS[i % 4] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i % 4, rng))
    return folder


def run_in(folder: Path, config: TrainConfig = CONFIG) -> Run:
    """A new run."""
    run = Run(folder, Request(config=config, labels=LABELS))
    run.write()
    return run


def saved(run: Run, engine: Engine, step: int) -> Path:
    """The folder of a step that the engine has saved."""
    folder = run.save(engine, step)
    run.saved(engine)
    return folder


def steps_of(engine: Engine, batches: Any, start: int, stop: int) -> Engine:
    """The engine after some steps."""
    for step in range(start, stop):
        engine.train_step(batches[step], step)
    return engine


def children(process: subprocess.Popen[bytes]) -> list[str]:
    """The processes it has started, from any of its threads."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return [child for thread in threads for child in (thread / "children").read_text().split()]


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ended(processes: list[str], seconds: float = 20) -> None:
    """That they end by themselves."""
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
