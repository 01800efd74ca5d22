"""Functions that the training commands share: requirements, fitted configs, progress, results and exit status."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.field_options import option_name, value_at, value_text
from vit_cli.masked import open_with_decoder
from vit_cli.option_types import Reading
from vit_cli.recipe_options import Changes, changed
from vit_cli.requirements import TRAINING, TWINS, require
from vit_cli.twins import Framework
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.storage import Location, location
from vit_core.variants import architecture_fields, variant
from vit_train import recipes
from vit_train.config import Data, TrainConfig

if TYPE_CHECKING:
    from vit_train.data.sources import Split
    from vit_train.stages import Launch, StageResult

Recipe = Annotated[str, Parameter(metavar="RECIPE")]
"""Name of a shipped recipe, or a Python file."""
Stage = Literal["pretrain", "finetune"]
Variant = Annotated[str, Parameter(metavar="VARIANT")]
"""A published architecture: B/16."""
Epochs = Annotated[float, Parameter(metavar="NUMBER")]
STEPS = ("steps",)
FEW_IMAGES = 10_000
"""Fewer training images than this are usually worth more for fine-tuning than for training random weights."""


def require_training(framework: Framework) -> None:
    """Raises InputError if packages are missing, or if torchrun starts processes for JAX."""
    require("train", *TRAINING)
    require(framework, *TWINS[framework])
    if framework == "jax" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("torchrun starts processes for PyTorch: add --framework torch, or start JAX without torchrun")


@dataclass(frozen=True)
class Wish:
    """A recipe with the changes that a command line requests."""

    recipe: str
    stage: Stage
    changes: Changes
    model: str | None = None
    """A variant, such as B/16."""
    epochs: float | None = None
    init: Checkpoint | None = None

    @property
    def chosen(self) -> dict[tuple[str, ...], Any]:
        """The fields that the user has chosen; a field's own option has priority over the variant."""
        if self.epochs is not None and STEPS in self.changes:
            raise InputError("--epochs and --steps both set the length of the run; remove one")
        if self.epochs is not None and not 0 < self.epochs < inf:
            raise InputError(f"--epochs {self.epochs:g}: expected more than 0")
        return {**(variant_fields(self.model) if self.model else {}), **self.changes}

    def unfitted(self) -> TrainConfig:
        """The recipe's config with the user's changes, without reading the data. Raises InputError for --epochs."""
        if self.epochs is not None:
            raise InputError("--epochs: needs the number of training images, but they are not on this machine")
        return changed(self._config(), self.chosen)

    def data(self) -> Data:
        """The data of the run. Raises InputError, before the data are opened, for options that contradict each
        other."""
        fields = {path: value for path, value in self.chosen.items() if path[0] == "data"}
        return changed(self._config(), fields).data

    @property
    def names_data(self) -> bool:
        """Whether the user has chosen the data."""
        return ("data", "name") in self.changes

    def training_split(self) -> "Split | None":
        """The training images. If they are not on this machine, None, with a printed reason.

        Raises InputError for a path that the user has chosen and that cannot be used, because training would refuse it
        too.
        """
        from vit_train.data.sources import open_split
        from vit_train.data.sources.opening import data_path

        data = self.data()
        try:
            return open_split(data, "train")
        except InputError as error:
            if self.names_data and (data_path(data) is not None or os.path.exists(data.name)):
                raise
            say(f"nothing is fitted to the data: {error}")
            return None

    @property
    def fits_small_sets(self) -> bool:
        """Whether the recipe fits its sizes and its length to the images."""
        return self._most_epochs() is not None

    def fitted(self, training: "Split", out: Location | None = None) -> TrainConfig:
        """The recipe's config with the user's changes, and with the remaining fields fitted to the training images;
        prints the fitted values. An existing run in the folder `out` keeps the values that were fitted when it
        began."""
        from vit_train.fitting import KEPT_ON_RESUME, TrainingSet, decoder_note, fitted_fields
        from vit_train.run import RUN, read_request

        chosen, data, config = self.chosen, TrainingSet.of(training), self._config()
        fields = fitted_fields(
            config, chosen, data, epochs=self.epochs, most_epochs=self._most_epochs(), new_weights=self.init is None
        )
        if out is not None and (out / RUN).exists():
            begun = read_request(out).config
            same_batch = changed(config, {**fields, **chosen}).batch_size == begun.batch_size
            if self.epochs is not None and same_batch and fields.get(STEPS, config.steps) != begun.steps:
                raise InputError(
                    f"{out}: has a run of {begun.steps} steps, but --epochs {self.epochs:g} of these images are "
                    f"{fields.get(STEPS, config.steps)}; vit resume {out} continues it, --steps N changes its "
                    "length; for another run, choose another --out"
                )
            kept = [path for path in KEPT_ON_RESUME if path not in chosen and (self.epochs is None or path != STEPS)]
            fields |= {path: value_at(begun, path) for path in kept}
            if chosen.get(STEPS, begun.steps) < begun.steps:  # the kept warm-up may not fit into so few
                raise InputError(
                    f"{out}: has a run of {begun.steps} steps, and --steps is {chosen[STEPS]}; vit resume {out} "
                    "continues it; for another run, choose another --out"
                )
        result = changed(config, {**fields, **chosen})
        if os.environ.get("RANK", "0") != "0":  # the first of torchrun's processes prints it for all
            return result
        if fields:
            options = (f"{option_name(path)} {value_text(value_at(result, path))}" for path in fields)
            say(f"fitted to {training.title}: {counted(training)}: {' '.join(options)}")
        epochs = result.steps * result.batch_size / len(training)
        say(f"{result.steps} steps of {result.batch_size} images: {epochs:.3g} epochs")
        if (note := decoder_note(result)) is not None:
            say(note)
        if self._begins_with_few(training) and (out is None or not (out / RUN).exists()):
            say(
                f"{len(training):,} images are few for random weights; a published checkpoint usually reaches more: "
                f"vit finetune {self.recipe} --init CHECKPOINT, such as hf://timm/vit_small_patch16_224.augreg_in21k"
            )
        return result

    def going_on_from(self, init: Location, reading: Reading) -> "Wish":
        """The same request with the opened checkpoint from which a masked autoencoder continues. Raises InputError if
        the recipe is not for a masked autoencoder."""
        if not self._mask_ratio:
            raise InputError(
                "--init: only masked autoencoders (--mae.mask-ratio 0.75) are pretrained from a checkpoint; to begin "
                "from one otherwise, use vit finetune RECIPE --init CHECKPOINT"
            )
        return replace(self, init=open_with_decoder(init, reading).adapt(num_classes=0))

    def _config(self) -> TrainConfig:
        if self.init is None or self.stage == "finetune":
            return self._recipe.config(self.stage, self.init.config if self.init else None)
        from vit_train.masked_pretraining import going_on_from

        return going_on_from(self._recipe.config(self.stage), self.init, self._mask_ratio)

    @property
    def _mask_ratio(self) -> float:
        """The mask ratio of a masked autoencoder; 0 for other recipes."""
        ratio: float = self.chosen.get(("mae", "mask_ratio"), self._recipe.config(self.stage).mae.mask_ratio)
        return ratio

    @cached_property
    def _recipe(self) -> "recipes.Recipe":
        return recipes.open_recipe(self.recipe)

    def _begins_with_few(self, training: "Split") -> bool:
        """Whether a recipe that is fitted to small sets trains random weights toward classes with few images."""
        new = self.stage == "pretrain" and self.init is None and not self._mask_ratio
        return new and self._most_epochs() is not None and len(training) < FEW_IMAGES

    def _most_epochs(self) -> int | None:
        return self._recipe.most_epochs(self.stage)


def variant_fields(spelled: str) -> dict[tuple[str, ...], Any]:
    """The fields of the model that a variant such as B/16 sets. Raises InputError for an unknown one."""
    patch = spelled.rpartition("/")[2]
    try:
        found = variant(spelled, image_size=int(patch) if patch.isdecimal() else 1, num_classes=1)
    except InputError as error:
        raise InputError(f"--model {spelled}: {error}") from None
    names = ("patch_size", *architecture_fields(spelled.rpartition("/")[0]))
    return {("model", name): getattr(found, name) for name in names}


def counted(training: "Split") -> str:
    """The numbers of images and classes of a split, as text."""
    from vit_train.data.sources.folders import UNLABELLED

    classes = "" if training.labels == UNLABELLED else f" of {len(training.labels)} classes"
    return f"{len(training)} images{classes}"


def run_of(word: str) -> Location | None:
    """The folder of a run, if a user has given one instead of a recipe."""
    from vit_train.run import RUN

    folder = location(word)
    return folder if word not in recipes.names() and (folder / RUN).is_file() else None


def go_on(
    run: Location, changes: Changes, framework: Framework | None, distributed: str | None, preflight: bool
) -> int:
    """Resumes a run with some fields changed, and prints how it ended; without a framework, in that of its last
    start."""
    require("train", *TRAINING)
    from vit_train.metrics import METRICS, read_metrics
    from vit_train.run import read_request

    engines = [line["engine"] for line in read_metrics(run / METRICS) if "engine" in line]
    framework = framework or read_request(run).framework or (engines[-1] if engines else "jax")
    require_training(framework)
    from vit_train.stages import resume

    fields = {".".join(path): value for path, value in changes.items()}
    return finish(resume(run, fields, launch(framework, distributed, preflight)))


def only_for_new_runs(**options: object) -> None:
    """Raises InputError for an option that a resumed run cannot take."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name}: is only for a new run; --steps changes the length of a resumed run")


def launch(framework: Framework, distributed: str | None, preflight: bool) -> "Launch":
    """The settings for starting a run whose progress is shown in the terminal."""
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.stages import Launch

    return Launch(framework, distributed, preflight, TerminalDisplay())


def finish(result: "StageResult") -> int:
    """Prints the result of a run, and returns the exit status: 128 + the signal's number if a signal stopped it."""
    from vit_cli.reports.training import print_stage

    print_stage(result)
    return 0 if result.fit.signal is None else 128 + result.fit.signal


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Context in which a signal that stops a task ends the command with exit status 128 + the signal's number."""
    from vit_train.signals import StoppedBySignal

    try:
        yield
    except StoppedBySignal as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None  # reported as any Ctrl-C
        raise SystemExit(128 + stopped.number) from None


def run_name(recipe: str) -> str:
    """The recipe's name, for the folder of its runs."""
    return recipe.rpartition("/")[2].removesuffix(".py")
