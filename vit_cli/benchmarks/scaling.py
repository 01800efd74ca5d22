"""`vit bench scaling`: how the time of a train step grows with the size of the run, and the host's time for a step with
almost no computation.

Steps are those of the trainer's engines. All sizes take turns in a round, so that other programs on the machine affect
all of them.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from vit_cli.benchmarks.generated_jpegs import jpegs
from vit_cli.twins import Framework
from vit_core import flops
from vit_core.config import ViTConfig
from vit_train.config import Optimizer, TrainConfig
from vit_train.data.batches import Batch, Batches
from vit_train.data.sources import Split
from vit_train.engine import Engine
from vit_train.frameworks import engine_class

BASE = TrainConfig(
    model=ViTConfig(image_size=64, patch_size=8, width=128, depth=4, heads=2, mlp_dim=512, num_classes=10),
    optimizer=Optimizer(weight_decay=0.05, clip_norm=1.0),
    steps=1_000_000,
    batch_size=8,
    compile=False,
)
"""The run whose sizes are doubled: large enough that matrix products take most of the time, small enough for a CPU."""
HOST = BASE.replace(
    model=BASE.model.replace(image_size=16, width=24, depth=24, heads=3, mlp_dim=48), batch_size=2, preprocessing=None
)
"""A run with 24 layers of very small arrays."""
HOST_STEPS = 20
"""Number of steps of a round, whose median is used."""


def described(config: TrainConfig) -> str:
    """The size of a run, as text."""
    model = config.model
    return f"batch {config.batch_size}, depth {model.depth}, width {model.width}, {model.tokens} tokens"


def doubled() -> dict[str, TrainConfig]:
    """What is doubled -> the run with it. The heads keep their width; a wider image gives more tokens."""
    model = BASE.model
    wider = model.replace(width=2 * model.width, heads=2 * model.heads, mlp_dim=2 * model.mlp_dim)
    height, width = model.image_size
    return {
        "batch": BASE.replace(batch_size=2 * BASE.batch_size),
        "depth": BASE.replace(model=model.replace(depth=2 * model.depth)),
        "width": BASE.replace(model=wider),
        "tokens": BASE.replace(model=model.replace(image_size=(height, 2 * width)), preprocessing=None),
    }


def exponents_of_flops() -> dict[str, float]:
    """What is doubled -> logarithm, to base 2, of the ratio of the FLOPs of a step."""

    def step(config: TrainConfig) -> int:
        return config.batch_size * sum(flops.forward(config.model).values())

    return {name: log2(step(config) / step(BASE)) for name, config in doubled().items()}


def exponents(
    framework: Framework, rounds: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """What is doubled -> logarithm, to base 2, of the ratio of the times of a step: the median over rounds."""
    sizes = {"": BASE, **doubled()}
    steps = {}
    for name, config in sizes.items():
        progress(f"{framework}: {name or 'base'}, compiling and the first step")
        steps[name] = _Step.of(framework, config)
    found: dict[str, list[float]] = {name: [] for name in doubled()}
    for i in range(rounds):
        progress(f"{framework}: round {i + 1}")
        seconds = {name: step.seconds() for name, step in steps.items()}
        for name, ratios in found.items():
            ratios.append(log2(seconds[name] / seconds[""]))
    return {name: statistics.median(ratios) for name, ratios in found.items()}


def host_seconds(
    frameworks: Sequence[Framework], rounds: int, progress: Callable[[str], None] = lambda text: None
) -> Mapping[str, float]:
    """The host's time for a step of 24 layers, until it is dispatched: processor time of the training thread, the
    median over rounds."""
    ways: dict[str, tuple[Framework, TrainConfig]] = {
        "JAX, scanned": ("jax", HOST),
        "JAX, unrolled": ("jax", HOST.replace(scan=False)),
        "PyTorch": ("torch", HOST),
    }
    steps = {}
    for name, (framework, config) in ways.items():
        if framework not in frameworks:
            continue
        progress(f"{name}, 24 layers: compiling and the first step")
        steps[name] = _Step.of(framework, config)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        progress(f"24 layers: round {i + 1}")
        for name, step in steps.items():
            found[name].append(step.host_seconds())
    return {name: statistics.median(seconds) for name, seconds in found.items()}


@dataclass
class _Step:
    """A train step that has been compiled."""

    engine: Engine
    batch: Batch
    number: int = 0

    @classmethod
    def of(cls, framework: Framework, config: TrainConfig) -> "_Step":
        (file,) = jpegs(1)
        examples = [{"image": file, "label": i % 10} for i in range(config.batch_size)]
        step = cls(
            engine_class(framework, config.dtype)(config),
            Batches(Split(examples, tuple("0123456789"), "generated"), config)[0],
        )
        step.seconds()
        return step

    def seconds(self) -> float:
        """Seconds of two consecutive steps, until the second result is available: processor time, or on an accelerator
        wall time."""
        clock = time.process_time if self.engine.hardware.endswith("cpu") else time.perf_counter
        start = clock()
        self._run()
        float(self._run().loss)
        return clock() - start

    def host_seconds(self) -> float:
        """Seconds of a step until it is dispatched; the median of several."""
        used = []
        for _ in range(HOST_STEPS):
            start = time.thread_time()
            result = self._run()
            used.append(time.thread_time() - start)
            float(result.loss)
        return statistics.median(used)

    def _run(self) -> Any:
        self.number += 1
        return self.engine.train_step(self.batch, self.number - 1)
