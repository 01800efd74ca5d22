"""A small run on generated images of four classes: each class has another bright quadrant in noise."""

import io
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_core import ViTConfig
from vit_core.storage import Location
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.data.sources import Split
from vit_train.engine import Engine
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.run import Request, Run

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
    ema=0.9,
    log_every=5,
    evaluation_batch=32,
    tensorboard=False,
)
SGD = Optimizer(name="sgd", momentum=0.0)
"""The optimizer of the tests that need simple updates: tests that share a model and an optimizer share a program."""
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
    """A split of `count` images in memory."""
    rng = np.random.default_rng(seed)
    return Split([{"image": png(i % 4, rng), "label": i % 4} for i in range(count)], LABELS, "quadrants")


def folder_of_images(folder: Path, count: int = 64, seed: int = 0) -> Path:
    """The images of `quadrants` as PNG files in class folders."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / LABELS[i % 4] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i % 4, rng))
    return folder


def run_in(folder: Location, config: TrainConfig = CONFIG) -> Run:
    """A new run in a folder."""
    run = Run(folder, Request(config=config, labels=LABELS))
    run.write()
    return run


def save_step(run: Run, engine: Engine, step: int) -> Location:
    """Saves a step, waits for it, and returns its folder."""
    folder = run.save(engine, step)
    run.wait_until_saved(engine)
    return folder


def train_steps(engine: Engine, batches: Any, start: int, stop: int) -> Engine:
    """Trains the steps from `start` to before `stop`, and returns the engine."""
    for step in range(start, stop):
        engine.train_step(batches[step], step)
    return engine


def children(process: subprocess.Popen[bytes]) -> list[str]:
    """The processes that a process has started, from any of its threads."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return [child for thread in threads for child in (thread / "children").read_text().split()]


def alive(process: str) -> bool:
    """Whether a process of this number is still running."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ended(processes: list[str], seconds: float = 20) -> None:
    """Waits until the processes have ended by themselves; fails after a number of seconds."""
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
