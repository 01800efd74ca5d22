"""The model card (README.md) of a checkpoint in the Hugging Face Hub, made from the records of the checkpoint and its
run."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vit_cli.console import say
from vit_cli.conversion_check import ConversionCheck
from vit_cli.evaluation_data import run_containing
from vit_cli.hub_repository import WRITTEN_BY_US, HubRepository
from vit_cli.requirements import TRAINING, missing
from vit_core.checkpoints import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import one_line
from vit_core.parameters import parameters
from vit_core.storage import Location

if TYPE_CHECKING:
    from vit_train.config import TrainConfig

_METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_average_precision": "mean average precision",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "exact": "all classes right",
    "evaluation_loss": "loss",
}
"""Name of a value in a run's log -> its name in the card, in the card's order."""
_LISTED_LABELS = 20


@dataclass(frozen=True)
class _RunFacts:
    """The records of the run of a checkpoint."""

    config: "TrainConfig"
    started_from: str | None
    evaluation: dict[str, Any]
    """The entry in the run's log of the evaluation of these weights; empty if there is none."""


def model_card(
    path: Location,
    checkpoint: Checkpoint,
    format: str,
    target: HubRepository,
    notes: Sequence[str],
    check: ConversionCheck,
    license: str | None = None,
) -> str:
    """The text of README.md for a checkpoint that was opened at `path` and written in a format for a repository.

    notes, check: notes of the conversion, and the differences that it caused. license: license of the weights, by its
    name in the Hub.
    """
    run = _run_facts(path, checkpoint)
    sections = (
        ("", [_summary(checkpoint.config.model, format)]),
        ("How to load it", _loading(checkpoint, format, target)),
        ("Images", _preprocessing(checkpoint)),
        ("Evaluation", _evaluation(run)),
        ("Training", _training(checkpoint, run)),
        ("Conversion", _conversion(checkpoint, format, notes, check)),
        ("Classes", _labels(checkpoint.config.labels)),
    )
    title = target.name.partition("/")[2]
    text = [f"# {title}", WRITTEN_BY_US]
    for heading, paragraphs in sections:
        if paragraphs:
            text += [f"## {heading}"] if heading else []
            text += paragraphs
    return f"---\n{_metadata(checkpoint.config.model, format, title, run, license)}\n---\n\n" + "\n\n".join(text) + "\n"


def _run_facts(path: Location, checkpoint: Checkpoint) -> _RunFacts | None:
    """The facts recorded by the run to which the checkpoint at a path belongs; None without a run."""
    step = checkpoint.config.provenance.step
    if step is None or checkpoint.format != "vit":
        return None
    if missing(TRAINING):
        say("the card has no facts about the training run; reading them needs: pip install 'vit-parity[train]'")
        return None
    from vit_train.metrics import METRICS, read_metrics
    from vit_train.run import AVERAGE, read_request

    if (run := run_containing(path)) is None:
        return None
    request = read_request(run)
    lines = [line for line in read_metrics(run / METRICS) if line["step"] == step and "evaluation_loss" in line]
    evaluation = lines[-1] if lines else {}
    if path.name == AVERAGE:  # its evaluation logs only one value
        evaluation = {name.removesuffix("_ema"): value for name, value in evaluation.items() if name.endswith("_ema")}
    return _RunFacts(request.config_at(max(step - 1, 0)), request.init, evaluation)


def _metadata(model: ViTConfig, format: str, title: str, run: _RunFacts | None, license: str | None) -> str:
    """The YAML that the Hub reads: the library, the task, the license, the accuracy."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if run and "top1" in run.evaluation:
        name = _public(run.config.data.name)
        results = [EvalResult("image-classification", name, name, "accuracy", round(run.evaluation["top1"], 6))]
    data = ModelCardData(
        library_name="vit-parity" if format == "vit" else format,
        pipeline_tag="image-classification" if model.num_classes else "image-feature-extraction",
        license=license,
        tags=["vision-transformer", "vit-parity"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _summary(model: ViTConfig, format: str) -> str:
    count = sum(row.size for row in parameters(model).values())
    head = f"{model.num_classes} classes" if model.num_classes else "no head"
    sizes = (" x ".join(map(str, size)) for size in (model.image_size, model.patch_size))
    return (
        f"A Vision Transformer: {count:,} parameters, {model.depth} layers of width {model.width}, {model.heads} "
        f"heads, images of {next(sizes)} pixels, patches of {next(sizes)}, {head}. Written by "
        f"vit-parity {version('vit-parity')} in the format `{format}`."
    )


def _loading(checkpoint: Checkpoint, format: str, target: HubRepository) -> list[str]:
    classes = checkpoint.config.model.num_classes
    at, named = target.address, f', revision="{target.revision}"' if target.revision else ""
    code = []
    if format == "transformers":
        kind = "AutoModelForImageClassification" if classes else "AutoModel"
        code += [f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{target.name}"{named})']
    if format == "timm":
        branch = f"@{target.revision}" if target.revision else ""
        code += [f'import timm\n\nmodel = timm.create_model("hf-hub:{target.name}{branch}", pretrained=True)']
    code += [
        f'import vit_torch  # pip install "vit-parity[torch,hub]"\n\nmodel = vit_torch.load("{at}")',
        f'import vit_jax  # pip install "vit-parity[jax,hub]"\n\nmodel = vit_jax.load("{at}")',
    ]
    return [f"```python\n{block}\n```" for block in code]


def _preprocessing(checkpoint: Checkpoint) -> list[str]:
    made = checkpoint.config.preprocessing
    if made is None:
        return ["The preprocessing of the training images is not known."]
    size = f"{made.image_size[0]} x {made.image_size[1]} pixels"
    resized = f"{made.resize}, {made.interpolation}, {made.crop_fraction:g} of the resized image"
    if made.max_patches is not None and made.patch_size is not None:
        size = (
            f"of each image: at most {made.max_patches} patches of {made.patch_size[0]} x {made.patch_size[1]} pixels"
        )
        resized = f"one factor for both sides, rounded up to whole patches, {made.interpolation}"
    rows = {
        "size": size,
        "channels": str(made.channels),
        "resized by": resized,
        "mean": ", ".join(f"{value:g}" for value in made.mean),
        "standard deviation": ", ".join(f"{value:g}" for value in made.std),
    }
    return [_table(("", ""), rows.items()), "Mean and standard deviation are of pixels between 0 and 1."]


def _evaluation(run: _RunFacts | None) -> list[str]:
    if run is None or not run.evaluation:
        return []
    rows = []
    for name, title in _METRICS.items():
        if name in run.evaluation:
            interval = run.evaluation.get(f"{name}_interval")
            between = f"{interval[0]:.2%} - {interval[1]:.2%}" if interval else ""
            value = run.evaluation[name]
            rows.append((title, f"{value:.4f}" if name == "evaluation_loss" else f"{value:.2%}", between))
    data = run.config.data
    split = f", split {_text(data.eval_split)}" if data.eval_split else ", the images that training evaluates on"
    if (groups := run.evaluation.get("top1_interval_from")) is not None:
        split += f" ({_text(groups)})"
    return [f"On {_text(_public(data.name))}{split}:", _table(("metric", "value", "95 % interval"), rows)]


def _training(checkpoint: Checkpoint, run: _RunFacts | None) -> list[str]:
    provenance = checkpoint.config.provenance
    rows: dict[str, str | None] = {"run": provenance.run, "steps": _number(provenance.step)}
    if run:
        config, optimizer = run.config, run.config.optimizer
        rows |= {
            "data": _public(config.data.name),
            "started from": _public(run.started_from) if run.started_from else "new weights",
            "batch size": str(config.batch_size),
            "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, "
            f"weight decay {optimizer.weight_decay:g}",
            "schedule": f"{config.schedule.name}, {config.schedule.warmup_steps} steps of warm-up",
            "loss": f"{config.loss}, label smoothing {config.label_smoothing:g}",
            "augmentation": _described(config),
            "moving average of the weights": f"{config.ema:g}" if config.ema is not None else None,
            "seed": str(config.seed),
        }
    rows["converted from"] = provenance.source and f"{_public(provenance.source)} ({provenance.source_format})"
    for done in provenance.position_resampling:
        sizes = (f"{a} x {b}" for a, b in (done.source, done.target))
        trained = "trained since" if done.trained_since else "not trained since"
        rows["position embeddings resampled"] = f"{' to '.join(sizes)} patches by {done.method}, {trained}"
    known = [(name, _text(value)) for name, value in rows.items() if value]
    return [_table(("", ""), known)] if known else []


def _described(config: "TrainConfig") -> str:
    from vit_train.config import flatten

    given = flatten(config.augmentation.model_dump(exclude_defaults=True))
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "none"


def _conversion(checkpoint: Checkpoint, format: str, notes: Sequence[str], check: ConversionCheck) -> list[str]:
    intro = (
        f"These files (`{format}`) were opened again before they were uploaded, and run in float64 on random images "
        "together with the checkpoint that they were made from."
    )
    lines = [*check.lines, *notes]
    return [intro, "\n".join(f"- {_text(line)}" for line in lines)]


def _labels(labels: Sequence[str] | None) -> list[str]:
    if not labels:
        return []
    listed = "\n".join(f"{i}. {_text(label)}" for i, label in enumerate(labels))
    if len(labels) <= _LISTED_LABELS:
        return [listed]
    return [f"<details><summary>{len(labels)} classes</summary>\n\n{listed}\n\n</details>"]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """A text from outside, escaped so that it cannot end a table's cell or become HTML or a link."""
    return re.sub(r"([\\`*_|\[\]#~$])", r"\\\1", html.escape(one_line(text), quote=False))


def _public(name: str) -> str:
    """The last part of a path or address, because the card must not publish where files are."""
    return PurePath(name.rstrip("/")).name or name


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
