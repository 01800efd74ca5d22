"""Names of options in other projects, and in other commands of `vit`.

`SAME` has options with exactly the meaning of one of ours, which are accepted. `HINTS` has the others, with one line
about what to write instead. The names are those of timm's train.py, transformers' Trainer, lightly-train and
big_vision.
"""

from collections.abc import Mapping, Sequence

_RECIPE = {
    "-b": "--batch-size", "--batch": "--batch-size", "--train-batch-size": "--batch-size",
    "--learning-rate": "--optimizer.learning-rate", "--optimizer.lr": "--optimizer.learning-rate",
    "--opt": "--optimizer.name", "--optim": "--optimizer.name", "--weight-decay": "--optimizer.weight-decay",
    "--wd": "--optimizer.weight-decay", "--clip-grad": "--optimizer.clip-norm",
    "--max-grad-norm": "--optimizer.clip-norm", "--grad-clip-norm": "--optimizer.clip-norm",
    "--layer-decay": "--optimizer.layer-decay", "--momentum": "--optimizer.momentum",
    "--sched": "--schedule.name", "--lr-scheduler-type": "--schedule.name", "--warmup-steps": "--schedule.warmup-steps",
    "--num-train-epochs": "--epochs", "--total-epochs": "--epochs", "--max-steps": "--steps",
    "--total-steps": "--steps", "--num-steps": "--steps",
    "--img-size": "--image-size", "--input-size": "--image-size", "--patch-size": "--model.patch-size",
    "--num-classes": "--model.num-classes", "--drop-path": "--model.stochastic-depth", "--drop": "--model.dropout",
    "--smoothing": "--label-smoothing", "--label-smoothing-factor": "--label-smoothing",
    "--mixup": "--augmentation.mixup", "--cutmix": "--augmentation.cutmix", "--hflip": "--augmentation.flip",
    "--reprob": "--augmentation.erasing",
    "--model-ema-decay": "--ema", "--ema-decay": "--ema",
    "--dataset": "--data", "--data-path": "--data", "--data-directory": "--data-dir",
    "--train-split": "--data.train-split", "--val-split": "--data.eval-split", "--eval-split": "--data.eval-split",
    "--held-out": "--data.held-out", "--split-seed": "--data.split-seed",
    "-j": "--workers", "--num-workers": "--workers", "--dataloader-num-workers": "--workers",
    "--log-interval": "--log-every", "--logging-steps": "--log-every", "--save-steps": "--save-every",
    "--eval-steps": "--evaluate-every", "--eval-batch-size": "--evaluation-batch",
    "--save-total-limit": "--keep", "--checkpoint-hist": "--keep",
    "--output": "--out", "--output-dir": "--out", "--workdir": "--out", "--logger": "--loggers",
}  # fmt: skip
_EVALUATE = {
    "--data.name": "--data", "--dataset": "--data", "--data-path": "--data",
    "--data.directory": "--data-dir", "--data-directory": "--data-dir",
    "--data.eval-split": "--split", "--eval-split": "--split", "--val-split": "--split",
    "--data.held-out": "--held-out", "--data.split-seed": "--split-seed",
    "--model.image-size": "--image-size", "--img-size": "--image-size",
    "-b": "--batch-size", "--batch": "--batch-size", "--evaluation-batch": "--batch-size",
}  # fmt: skip
_PREDICT = {
    "-": "--stdin", "--top": "--top-k", "--topk": "--top-k", "--output": "--out", "--results-file": "--out",
    "--format": "--to", "--results-format": "--to", "--model.image-size": "--image-size", "--img-size": "--image-size",
    "-b": "--batch-size", "--batch": "--batch-size", "-j": "--threads", "--num-workers": "--threads",
    "--workers": "--threads",
}  # fmt: skip
_PREPARE = {
    "--data.held-out": "--held-out", "--data.split-seed": "--split-seed", "--output": "--out", "--output-dir": "--out",
    "-j": "--workers", "--num-workers": "--workers",
}  # fmt: skip
_CONVERT = {
    "--model.image-size": "--image-size", "--img-size": "--image-size", "--model.num-classes": "--num-classes",
    "--format": "--to",
}  # fmt: skip
RECIPE_COMMANDS = ("explain", "pretrain", "finetune", "resume", "plan")
SAME: dict[str, dict[str, str]] = {
    **dict.fromkeys(RECIPE_COMMANDS, _RECIPE),
    "evaluate": _EVALUATE,
    "prepare": _PREPARE,
    "convert": _CONVERT,
    "predict": _PREDICT,
    "features": {option: own for option, own in _PREDICT.items() if own not in ("--top-k", "--to")},
    "demo": {"--output": "--out"},
    "compare": {"--output": "--out"},
}
"""Command -> option as it is typed -> the command's own option."""

_BFLOAT16 = "write --compute-dtype bfloat16 (no scaling of the loss is needed)"
_LOGS = "write --loggers wandb, or mlflow, or both words; TensorBoard events and metrics.jsonl are always written"
_INIT = "to begin from a checkpoint, write vit finetune RECIPE --init CHECKPOINT"
_RESUME = "write vit resume RUN; the command that began a run continues it too"
_BATCH = "--batch-size is the batch of one update, over all devices; --accumulation divides it into parts"
_DEVICES = "all devices that the framework finds are used; choose them with CUDA_VISIBLE_DEVICES"
_FORMAT = "the target is the second word: vit convert SOURCE TARGET"
_ADAPTERS = (
    "adapters without their base are not converted: a run with --lora.rank writes them in peft's format, in RUN/adapter"
)
_RECIPE_HINTS = {
    **dict.fromkeys(("--amp", "--bf16", "--fp16", "--precision", "--mixed-precision", "--amp-dtype"), _BFLOAT16),
    **dict.fromkeys(("--wandb", "--log-wandb", "--report-to", "--mlflow"), _LOGS),
    **dict.fromkeys(("--pretrained", "--initial-checkpoint", "--model-name-or-path", "--checkpoint"), _INIT),
    **dict.fromkeys(("--resume", "--resume-from-checkpoint", "--resume-interrupted"), _RESUME),
    **dict.fromkeys(("--per-device-train-batch-size", "--gradient-accumulation-steps", "--grad-accum-steps"), _BATCH),
    **dict.fromkeys(("--device", "--devices", "--gpus", "--accelerator"), _DEVICES),
    "--wandb-project": "write --loggers wandb, and set WANDB_PROJECT",
    "--warmup-epochs": "write --schedule.warmup-steps, in steps",
    "--warmup-ratio": "write --schedule.warmup-steps, in steps",
    "--model-ema": "write --ema 0.999",
    "--aa": "rand-m9-mstd0.5-inc1 is --augmentation.rand-augment.layers 2 --augmentation.rand-augment.deviation 0.5; "
    "AutoAugment is --augmentation.auto-augment imagenet",
    "--color-jitter": "write --augmentation.color-jitter 0.3 0.3 0.3 0: brightness, contrast, saturation, hue",
    "--remode": "write --augmentation.erasing-fill noise (pixel), or mean (const)",
    "--repeated-aug": "write --augmentation.repeats 3",
    "--aug-repeats": "write --augmentation.repeats 3",
    "--config": "the recipe is the first word: vit pretrain RECIPE, the name of one or a Python file",
    "--torchcompile": "write --compile (PyTorch; on by default on a GPU); JAX compiles always",
}  # fmt: skip
_NUMBERS = "write --json FILE for all numbers; vit predict writes the predictions for each image"
_WRITTEN = "write --to csv, jsonl or parquet; with --out FILE its name says which"
HINTS: dict[str, dict[str, str]] = {
    **dict.fromkeys(RECIPE_COMMANDS, _RECIPE_HINTS),
    "finetune": {**_RECIPE_HINTS, "--model": "the architecture is that of the checkpoint; leave it out"},
    "evaluate": {
        **dict.fromkeys(("--amp", "--bf16", "--fp16", "--precision"), "write --compute-dtype bfloat16"),
        **dict.fromkeys(("--checkpoint", "--model", "--resume"), "the checkpoint is the first word: vit evaluate PATH"),
        **dict.fromkeys(("--out", "--output", "--results-file", "--csv"), _NUMBERS),
        **dict.fromkeys(("--device", "--devices", "--gpus"), _DEVICES),
    },
    "predict": {
        **dict.fromkeys(("--amp", "--bf16", "--fp16", "--precision"), "write --compute-dtype bfloat16"),
        **dict.fromkeys(("--checkpoint", "--model", "--init"), "the checkpoint is the first word: vit predict PATH"),
        **dict.fromkeys(("--json", "--jsonl", "--csv", "--parquet"), _WRITTEN),
        **dict.fromkeys(("--data", "--data-dir"), "the images are the second word: vit predict PATH FOLDER"),
        **dict.fromkeys(("--device", "--devices", "--gpus"), _DEVICES),
    },
    "prepare": dict.fromkeys(("--data", "--data.name"), "the images are the first word: vit prepare FOLDER --out OUT"),
    "convert": {
        **dict.fromkeys(("--out", "--output", "--output-dir"), _FORMAT),
        **dict.fromkeys(("--to peft", "--to lora"), _ADAPTERS),
        "--from peft": "leave it out: a folder of adapters is recognized, and --base PATH names what they belong to",
        "--to onnx": "write vit export SOURCE TARGET.onnx",
    },
}
"""Command -> option that it does not have, or option and value -> hint about what to write instead."""


def own_spellings(command: str, words: Sequence[str]) -> list[str]:
    """The words with a command's own options instead of others with the same meaning."""
    same: Mapping[str, str] = SAME.get(command, {})
    spelled: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            return [*spelled, *words[place:]]
        name, equals, value = word.partition("=")
        spelled.append(same.get(name, name) + equals + value)
    return spelled


def hint(command: str, option: str) -> str | None:
    """What to write instead of an option, or an option and its value, that a command does not have; None if this is not
    known."""
    return HINTS.get(command, {}).get(option)
