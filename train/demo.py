"""`vit demo`: the main job, end to end, on real images that need no download.

Handwritten digits: pretrained in JAX at a low resolution, opened in PyTorch, shown to be the same model, fine-tuned
there at a higher resolution, both evaluated on held-out images.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import vit_jax
import vit_torch
from vit_core import Provenance, ViTConfig, display, open_checkpoint, parity, save_checkpoint
from vit_core.checkpoint import Checkpoint
from vit_core.display import say
from vit_core.preprocess import Preprocessing

from . import digits, figures
from .config import Augmentation, Optimizer, TrainConfig
from .data import Example, batches
from .engine_jax import JaxEngine
from .engine_torch import TorchEngine
from .loop import Accuracy, Engine, evaluate, fit, save_step
from .parity import one_step

MODEL = ViTConfig(
    image_size=16,
    patch_size=4,
    channels=1,
    width=96,
    depth=4,
    heads=3,
    mlp_dim=384,
    num_classes=10,
    pooling="gap",
    class_token=False,
    stochastic_depth=0.05,
)
FINER = 24
"""Image size of the fine-tuning."""
PRETRAIN_STEPS, FINETUNE_STEPS, BATCH = 1400, 400, 64


@dataclass(frozen=True)
class Stage:
    """A line of the final table."""

    name: str
    engine: Engine
    accuracy: Accuracy
    seconds: float


def main(out: Path, seed: int = 0) -> bool:
    """Runs the whole path and says whether parity held; all it makes is under `out`, overwritten by each run."""
    source, held_out, labels = digits.prepare(out / "data")
    source, held_out = list(source), list(held_out)  # few and small: read once
    say(f"digits: {len(source)} images to train on, {len(held_out)} held out, 8 x 8 pixels")

    pretrain = pretraining(seed)
    first = train("pretrain", JaxEngine(pretrain), source, held_out, out / "pretrain")
    folder = export(first.engine, out / "pretrain", labels)
    checkpoint = open_checkpoint(folder)

    one_model = show_parity(checkpoint, pretrain, source)

    untuned = checkpoint.adapt(image_size=FINER)
    say(
        f"\nfine-tuning at {FINER} x {FINER}: positions {MODEL.grid} -> {untuned.config.model.grid} by "
        f"{MODEL.position_resampling}. (The sources are 8 x 8 pixels: both resolutions are upsampled, so this shows "
        "the path, not a gain from finer images.)"
    )
    finetune = finetuning(pretrain, untuned)
    second = train("fine-tune", TorchEngine(finetune, untuned), source, held_out, out / "finetune")
    tuned = export(second.engine, out / "finetune", labels, untuned.config.provenance)

    drawn = draw(out, checkpoint, untuned, open_checkpoint(tuned))
    summary([first, second])
    for what, path in [
        ("checkpoint, pretrained", folder),
        ("checkpoint, fine-tuned", tuned),
        ("metrics", out / "pretrain" / "metrics.jsonl"),
        ("metrics", out / "finetune" / "metrics.jsonl"),
        *(("figure", path) for path in drawn),
    ]:
        say(f"{what:22} {path}")
    return one_model


def pretraining(seed: int) -> TrainConfig:
    """The config of the first stage."""
    return TrainConfig(
        model=MODEL,
        preprocessing=Preprocessing(image_size=MODEL.image_size, channels=1),
        augmentation=Augmentation(rotation=8, shift=0.06),
        steps=PRETRAIN_STEPS,
        warmup_steps=100,
        batch_size=BATCH,
        optimizer=Optimizer(learning_rate=1.5e-3, weight_decay=0.3, epsilon=1e-6, clip_norm=1.0),
        label_smoothing=0.1,
        seed=seed,
    )


def finetuning(pretrain: TrainConfig, weights: Checkpoint) -> TrainConfig:
    """The config of the second stage, at the resolution of `weights`."""
    assert weights.config.preprocessing
    return pretrain.replace(
        model=weights.config.model,
        preprocessing=weights.config.preprocessing,
        steps=FINETUNE_STEPS,
        warmup_steps=40,
        optimizer=pretrain.optimizer.replace(learning_rate=6e-4),
    )


def train(title: str, engine: Engine, source: Sequence[Example], held_out: Sequence[Example], run: Path) -> Stage:
    """One stage under a progress bar; its time covers training and evaluation."""
    (run / "metrics.jsonl").unlink(missing_ok=True)
    begin = time.perf_counter()
    with display.progress() as bar:
        task = bar.add_task(f"{title} ({engine.name})", total=engine.config.steps, note="compiling")

        def on_step(step: int, loss: float | None) -> None:
            bar.update(task, completed=step)
            if loss is not None:
                bar.update(task, note=f"loss {loss:.3f}")

        fit(engine, source, run, on_step=on_step)
    return Stage(title, engine, evaluate(engine, held_out), time.perf_counter() - begin)


def export(engine: Engine, run: Path, labels: tuple[str, ...], provenance: Provenance | None = None) -> Path:
    """The run's last step (to go on from), and its checkpoint folder (to use)."""
    step = save_step(engine, run, engine.config.steps, labels=labels, provenance=provenance)
    config = open_checkpoint(step).config
    save_checkpoint(run / "checkpoint", config, engine.export())
    return run / "checkpoint"


def show_parity(checkpoint: Checkpoint, config: TrainConfig, source: Sequence[Example]) -> bool:
    """Prints and judges a checkpoint's parity in float64: stages, gradients, and one optimizer step."""
    with jax.enable_x64(True), display.working("running both twins in float64"):
        in_jax, in_torch = parity.run(checkpoint, (vit_jax, vit_torch), "float64", seed=0)
        step = one_step(checkpoint, config.replace(dtype="float64"), batches(source, config)[0])
    report = parity.compare({**in_jax, **step[0]}, {**in_torch, **step[1]})
    display.parity_report("JAX and PyTorch on this checkpoint, float64", report)
    return report.ok


def draw(out: Path, pretrained: Checkpoint, untuned: Checkpoint, tuned: Checkpoint) -> list[Path]:
    """The three figures."""
    curves = [(stage, out / stage / "metrics.jsonl") for stage in ("pretrain", "finetune")]
    prefix = int(MODEL.class_token_position)
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
