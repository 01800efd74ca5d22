"""`vit demo`: the main job, end to end, on real images that need no download.

Handwritten digits: pretrained in JAX at a low resolution, opened in PyTorch, shown to be the same model, fine-tuned
there at a higher resolution, both evaluated on held-out images.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import vit_jax
import vit_torch
from vit_core import display, open_checkpoint, parity
from vit_core.checkpoint import FINISHED, Checkpoint
from vit_core.display import say

from . import figures
from .commands import adapted, open_splits
from .config import Schedule, TrainConfig
from .data import Batches
from .engine_jax import JaxEngine
from .engine_torch import TorchEngine
from .loop import Accuracy, Engine, batches_for, fit
from .metrics import METRICS
from .parity import one_step
from .recipes import digits
from .run import Request, Run
from .sources import Split


@dataclass(frozen=True)
class Stage:
    """A line of the final table."""

    name: str
    engine: Engine
    accuracy: Accuracy
    seconds: float


def main(out: Path, seed: int = 0) -> bool:
    """Runs the whole path and says whether parity held; all it makes is under `out`, overwritten by each run."""
    recipe = digits.pretrain()
    pretrain = recipe.replace(seed=seed, data=recipe.data.replace(directory=str(out / "data")))
    training, evaluation = open_splits(pretrain)
    say(f"digits: {len(training)} images to train on, {len(evaluation)} held out, 8 x 8 pixels")
    first = train("pretrain", pretrain, None, training, evaluation, out / "pretrain")
    checkpoint = open_checkpoint(out / "pretrain" / FINISHED)

    one_model = show_parity(checkpoint, pretrain, training)

    finetune = digits.finetune(checkpoint.config).replace(seed=seed, data=pretrain.data)
    untuned, finetune, changes = adapted(checkpoint, finetune, training.labels)
    say(
        f"\nfine-tuning: {'; '.join(changes)}. (The sources are 8 x 8 pixels: both resolutions are upsampled, so this "
        "shows the path, not a gain from finer images.)"
    )
    second = train("fine-tune", finetune, untuned, training, evaluation, out / "finetune")

    drawn = draw(out, checkpoint, untuned, open_checkpoint(out / "finetune" / FINISHED))
    summary([first, second])
    for what, path in [
        ("checkpoint, pretrained", out / "pretrain" / FINISHED),
        ("checkpoint, fine-tuned", out / "finetune" / FINISHED),
        ("metrics", out / "pretrain" / METRICS),
        ("metrics", out / "finetune" / METRICS),
        *(("figure", path) for path in drawn),
    ]:
        say(f"{what:22} {path}")
    return one_model


def train(
    title: str, config: TrainConfig, weights: Checkpoint | None, training: Split, evaluation: Split, folder: Path
) -> Stage:
    """One stage, begun anew: from nothing in JAX, from a checkpoint in PyTorch. Its time covers the evaluation."""
    begin = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    engine = JaxEngine(config) if weights is None else TorchEngine(config, weights)
    provenance = {} if weights is None else {"provenance": weights.config.provenance}
    run = Run(folder, Request(config=config, labels=training.labels, **provenance))
    run.write()
    fitted = fit(engine, run, batches_for(engine, training), evaluation, title=title)
    if fitted.accuracy is None:
        sys.exit(130)
    return Stage(title, engine, fitted.accuracy, time.perf_counter() - begin)


def show_parity(checkpoint: Checkpoint, config: TrainConfig, split: Split) -> bool:
    """Prints and judges a checkpoint's parity in float64: stages, gradients, and one optimizer step."""
    with jax.enable_x64(True), display.working("running both twins in float64"):
        in_jax, in_torch = parity.run(checkpoint, (vit_jax, vit_torch), "float64", seed=0)
        peak = config.replace(dtype="float64", schedule=Schedule(name="constant"))
        step = one_step(checkpoint, peak, Batches(split, config)[0])
    report = parity.compare({**in_jax, **step[0]}, {**in_torch, **step[1]})
    display.parity_report("JAX and PyTorch on this checkpoint, float64", report)
    return report.ok


def draw(out: Path, pretrained: Checkpoint, untuned: Checkpoint, tuned: Checkpoint) -> list[Path]:
    """The three figures."""
    curves = [(stage, out / stage / METRICS) for stage in ("pretrain", "finetune")]
    prefix = pretrained.config.model.prefix_positions
    tables = [
        (f"positions, {title}", np.asarray(c.arrays["pos_embed"][0, prefix:]), c.config.model.grid)
        for title, c in [("pretrained", pretrained), ("resampled", untuned), ("fine-tuned", tuned)]
    ]
    kernels = [
        (f"patch filters, {title}", c.arrays["patch_embed.proj.weight"])
        for title, c in [("pretrained", pretrained), ("fine-tuned", tuned)]
    ]
    return [
        figures.training_curves(curves, out / "training_curves.png"),
        figures.position_similarity(tables, out / "position_similarity.png"),
        figures.patch_filters(kernels, out / "patch_filters.png"),
    ]


def summary(stages: Sequence[Stage]) -> None:
    """The final table."""
    rows = []
    for stage in stages:
        model, accuracy = stage.engine.config.model, stage.accuracy
        low, high = accuracy.interval
        rows.append(
            (
                stage.name,
                f"{model.image_size[0]} x {model.image_size[1]}",
                model.tokens,
                stage.engine.name,
                f"{accuracy.top1:.1%}",
                f"{low:.1%} - {high:.1%}",
                f"{stage.seconds:.0f}",
            )
        )
    columns = ("stage", "resolution", "tokens", "framework", "top-1", "95 % interval", "seconds")
    display.table("held-out digits", columns, rows)
