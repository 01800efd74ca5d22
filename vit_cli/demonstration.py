"""The whole workflow (`vit demo`) on handwritten digits, which need no download.

A model is pretrained in JAX at a low resolution, opened in PyTorch, compared with the JAX model, and fine-tuned in
PyTorch at a higher resolution. Both models are evaluated on held-out images.
"""

import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import vit_jax
import vit_torch
from vit_cli import console
from vit_cli.console import say
from vit_cli.reports.parity import print_parity
from vit_cli.reports.training import TerminalDisplay
from vit_core import parity
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.checkpoints.comparison import trace_twins
from vit_core.checkpoints.run_folder import FINISHED
from vit_core.storage import Location
from vit_train import figures
from vit_train.config import Schedule, TrainConfig
from vit_train.data.batches import Batches
from vit_train.data.sources import Split
from vit_train.engine import Engine
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.evaluation import Accuracy
from vit_train.loop import batches_for, fit
from vit_train.metrics import METRICS
from vit_train.parity import one_step
from vit_train.recipes import digits
from vit_train.run import Request, Run
from vit_train.signals import StoppedBySignal
from vit_train.stages import adapted, open_splits


@dataclass(frozen=True)
class Stage:
    """One training stage; a row of the final table."""

    name: str
    engine: Engine
    accuracy: Accuracy
    seconds: float


def demonstrate(out: Path, seed: int = 0) -> bool:
    """Runs the workflow in the folder `out`, replacing its contents, and returns whether both models are equal within
    the bounds."""
    recipe = digits.pretrain()
    pretrain = recipe.replace(seed=seed, data=recipe.data.replace(directory=str(out / "data")))
    training, evaluation = open_splits(pretrain.data)
    say(f"digits: {len(training)} images to train on, {len(evaluation)} held out, 8 x 8 pixels")
    first = train("pretrain", pretrain, None, training, evaluation, out / "pretrain")
    checkpoint = open_checkpoint(out / "pretrain" / FINISHED)

    same_model = check_parity(checkpoint, pretrain, training)

    finetune = digits.finetune(checkpoint.config).replace(seed=seed, data=pretrain.data)
    untuned, finetune, changes = adapted(checkpoint, finetune, training.labels)
    say(
        f"fine-tuning: {'; '.join(changes)}. (The sources are 8 x 8 pixels: both resolutions are upsampled, so this "
        "shows the workflow, not a gain from finer images.)"
    )
    second = train("fine-tune", finetune, untuned, training, evaluation, out / "finetune")

    drawn = draw_figures(out, checkpoint, untuned, open_checkpoint(out / "finetune" / FINISHED))
    print_summary([first, second])
    for what, path in [
        ("checkpoint, pretrained", out / "pretrain" / FINISHED),
        ("checkpoint, fine-tuned", out / "finetune" / FINISHED),
        ("metrics", out / "pretrain" / METRICS),
        ("metrics", out / "finetune" / METRICS),
        *(("figure", path) for path in drawn),
    ]:
        say(f"{what:22} {path}")
    return same_model


def train(
    title: str, config: TrainConfig, weights: Checkpoint | None, training: Split, evaluation: Split, folder: Path
) -> Stage:
    """Trains one stage: in JAX from new weights, in PyTorch from a checkpoint. Its time includes the evaluation."""
    begin = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    engine = JaxEngine(config) if weights is None else TorchEngine(config, weights)
    provenance = {} if weights is None else {"provenance": weights.config.provenance}
    run = Run(folder, Request(config=config, labels=training.labels, **provenance))
    run.write()
    fitted = fit(engine, run, batches_for(engine, training), evaluation, title=title, display=TerminalDisplay())
    if fitted.accuracy is None:
        raise StoppedBySignal(fitted.signal or signal.SIGINT)
    return Stage(title, engine, fitted.accuracy, time.perf_counter() - begin)


def check_parity(checkpoint: Checkpoint, config: TrainConfig, split: Split) -> bool:
    """Prints the differences between the twins on a checkpoint in float64 (stages, gradients and one optimizer step),
    and returns whether all are within their bounds."""
    with jax.enable_x64(True), console.working("running both twins in float64"):
        in_jax, in_torch = trace_twins(checkpoint, (vit_jax, vit_torch), "float64", seed=0)
        peak = config.replace(dtype="float64", schedule=Schedule(name="constant"))
        step = one_step(checkpoint, peak, Batches(split, config)[0])
    report = parity.compare({**in_jax, **step[0]}, {**in_torch, **step[1]})
    print_parity("JAX and PyTorch on this checkpoint, float64", report)
    return report.ok


def draw_figures(out: Path, pretrained: Checkpoint, untuned: Checkpoint, tuned: Checkpoint) -> list[Location]:
    """Draws the training curves, the position embeddings and the patch filters."""
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


def print_summary(stages: Sequence[Stage]) -> None:
    """Prints the final table."""
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
    console.table("held-out digits", columns, rows)
