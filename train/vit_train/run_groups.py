"""Compares finished runs: their accuracy, its confidence interval, and its growth with the training cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t as student

from vit_core.errors import InputError
from vit_core.storage import Location, absolute
from vit_train.config import TrainConfig, flatten
from vit_train.config.changeable import CHANGEABLE_ON_RESUME
from vit_train.metrics import METRICS, curve, read_metrics
from vit_train.run import RUN, SCORES, Request, read_request


@dataclass(frozen=True)
class FinishedRun:
    """A run with an evaluation of its last step."""

    folder: Location
    request: Request
    engine: str
    """The framework that logged its last step."""
    top1: float
    """Top-1 accuracy; mean average precision, if images may have several classes (`multilabel`)."""
    interval: tuple[float, float] | None
    """95 % interval of top1, from the number of images that it was evaluated on, and their groups if they have some.
    None for mean average precision."""
    average_top1: float | None
    """The same of the moving average, of a run that has one."""
    evaluations: tuple[tuple[int, float], ...] = ()
    """Step and top-1 accuracy of every evaluation, the last one too."""
    interval_from: str | None = None
    """The numbers of images and of groups from which the interval comes, as text, if the images have groups."""
    multilabel: bool = False
    """Whether images may have several classes."""

    @property
    def config(self) -> TrainConfig:
        return self.request.config_at(self.request.steps)

    @property
    def images(self) -> int:
        return self.config.examples_before(self.request.steps)

    @property
    def training_flops(self) -> float:
        """FLOPs of the run: three times those of the forward passes, two for each multiplication."""
        return 3.0 * sum(self.config.forward_flops.values()) * self.images

    def steps_to(self, accuracy: float) -> int | None:
        """The step of the first evaluation with at least this accuracy; None where none has it."""
        return next((step for step, top1 in self.evaluations if top1 >= accuracy), None)

    @cached_property
    def fields(self) -> dict[str, object]:
        """The values that are equal in runs that differ only in the seed: the fields that affect the weights, the
        checkpoint from which the run started, the fingerprints of its examples, and the framework."""
        fields = flatten(self.config.model_dump(mode="json"))
        own = {name: value for name, value in fields.items() if name not in CHANGEABLE_ON_RESUME and name != "seed"}
        return own | {"init": self.request.init, "examples": self.request.examples, "framework": self.engine}


class UnfinishedError(InputError):
    """A run was not evaluated after its last step, or not by classes."""


def read_finished_run(folder: Location) -> FinishedRun:
    """A run's request and last evaluation. Raises InputError for a folder that holds no run; UnfinishedError for a run
    that was not evaluated after its last step, or not by classes."""
    request, lines = read_request(folder), read_metrics(folder / METRICS)
    last = [line for line in lines if line["step"] == request.steps and any(name in line for name in SCORES)]
    engines = [line["engine"] for line in lines if "engine" in line]
    if not last or not engines:
        reason = "it is not finished (see `vit resume`)"
        if request.config.masked is not None:
            reason = "it is a masked autoencoder"
        raise UnfinishedError(f"{folder}: no accuracy after its last step, {request.steps}: {reason}")
    end = last[-1]
    score = next(name for name in SCORES if name in end)
    evaluations = tuple(zip(*curve(lines, score), strict=True))
    interval = tuple(end["top1_interval"]) if "top1_interval" in end else None
    average, interval_from = end.get(f"{score}_ema"), end.get("top1_interval_from")
    return FinishedRun(
        folder, request, engines[-1], end[score], interval, average, evaluations, interval_from, score != "top1"
    )


def runs_under(folder: Location) -> list[Location]:
    """The folder itself if it is a run, otherwise the runs in it, by name. Raises InputError if there is none."""
    if (folder / RUN).exists():
        return [folder]
    found = sorted((each for each in folder.iterdir() if (each / RUN).exists()), key=str) if folder.is_dir() else []
    if not found:
        raise InputError(
            f"{folder}: no training run, and no folder of training runs (no {RUN} in it or one level below)"
        )
    return found


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds."""

    runs: tuple[FinishedRun, ...]

    @property
    def top1(self) -> list[float]:
        """Top-1 accuracy of each run."""
        return [run.top1 for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean top-1 accuracy."""
        return float(np.mean(self.top1))

    @property
    def average_top1(self) -> list[float]:
        """Top-1 accuracy of each run's moving average; nothing where a run has none."""
        found = [run.average_top1 for run in self.runs if run.average_top1 is not None]
        return found if len(found) == len(self.runs) else []

    def steps_to(self, first: "Group") -> dict[int, int | None]:
        """Seed -> the step at which its run has the final accuracy of the first group's run with this seed; None if it
        never has. Without seeds that the first group does not have, and without runs that were not evaluated during
        training; empty for a group that was evaluated on other images."""
        ends = {run.config.seed: run.top1 for run in first.runs}
        if not self.same_evaluation(first):
            return {}
        compared = [run for run in self.runs if run.config.seed in ends and len(run.evaluations) > 1]
        return {run.config.seed: run.steps_to(ends[run.config.seed]) for run in compared}

    @property
    def training_flops(self) -> float:
        return self.runs[0].training_flops

    def same_evaluation(self, first: "Group") -> bool:
        """Whether this group and `first` were evaluated on the same images, so that accuracies can be compared."""
        return self.runs[0].request.examples[1:] == first.runs[0].request.examples[1:]

    def changes_from(self, first: "Group") -> dict[str, object]:
        """The fields that differ from the first group, and their values in this group."""
        ours, theirs = self.runs[0].fields, first.runs[0].fields
        names = dict.fromkeys([*ours, *theirs])
        return {name: ours.get(name) for name in names if ours.get(name) != theirs.get(name)}


def grouped(runs: Sequence[FinishedRun]) -> list[Group]:
    """The runs, each folder once, in groups that differ only in the seed, in the order of each group's first run.
    Raises InputError for two runs with one seed, because they would make the spread look smaller than it is."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in {str(absolute(run.folder)): run for run in runs}.values():
        groups.setdefault(repr(sorted(run.fields.items())), []).append(run)
    for group in groups.values():
        seeds: dict[int, FinishedRun] = {}
        for run in group:
            if (other := seeds.setdefault(run.config.seed, run)) is not run:
                raise InputError(f"{other.folder} and {run.folder}: the same run, of seed {run.config.seed}; name one")
    return [Group(tuple(group)) for group in groups.values()]


def half_width(groups: Sequence[Sequence[float]], *counts: int) -> float | None:
    """Half of the 95 % interval of a mean over `counts[0]` seeds, or of the difference of two means; None where no
    group has two seeds. groups: the values of each group's seeds.

    The spread between seeds is taken to be the same in all groups and estimated from all of them, as Student's t-test
    does for two: with two or three seeds each, the estimate from one group alone is too uncertain.
    """
    freedom = sum(len(values) - 1 for values in groups)
    if not freedom:
        return None
    squares = sum(np.square(np.subtract(values, np.mean(values))).sum() for values in groups)
    error = np.sqrt(squares / freedom * sum(1 / count for count in counts))
    return float(student.ppf(0.975, freedom) * error)


@dataclass(frozen=True)
class PowerLaw:
    """errors = exp(intercept) * cost ** slope, fitted to logarithms by least squares.

    Of the points are kept: their number, the mean of log(cost), the sum of its squared deviations, and the sum of the
    squared residuals of log(error).
    """

    intercept: float
    slope: float
    points: int
    middle: float
    spread: float
    residual: float

    @classmethod
    def fitted(cls, costs: Sequence[float], errors: Sequence[float]) -> "PowerLaw":
        """The power law of points, each the cost of a run in FLOPs and its error from 0 to 1. Raises InputError for
        fewer than three different costs (through two points any line passes), or an error of 0."""
        if len(set(costs)) < 3 or min(errors) <= 0:
            raise InputError(
                f"{len(set(costs))} different costs: a power law is fitted to three or more, and to errors above 0"
            )
        x, y = np.log(costs), np.log(errors)
        slope, intercept = np.polyfit(x, y, 1)
        residual = np.square(y - intercept - slope * x).sum()
        return cls(
            float(intercept), float(slope), len(x), float(x.mean()), float(np.square(x - x.mean()).sum()), residual
        )

    def error(self, cost: float) -> float:
        return float(np.exp(self.intercept + self.slope * np.log(cost)))

    def error_interval(self, cost: float) -> tuple[float, float]:
        """95 % prediction interval of the error of one more run of that cost, at most 1; it assumes that the law is
        right."""
        distance, freedom = np.log(cost) - self.middle, self.points - 2
        variance = self.residual / freedom * (1 + 1 / self.points + distance**2 / self.spread)
        factor = np.exp(student.ppf(0.975, freedom) * np.sqrt(variance))
        return self.error(cost) / factor, min(1.0, self.error(cost) * factor)
