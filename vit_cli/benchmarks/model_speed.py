"""`vit bench model`: the speed of the forward pass and the train step of both twins and of other libraries' models.

The contestants of a setting take turns, so that whatever else the machine does meets all of them. Each round begins
with another one, so that none always follows the same. A turn is one call that is not counted, then several that are.
What is compared are medians over rounds.
"""

import json
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from math import ceil

from vit_cli.benchmarks.contestants import KINDS, Contestant, Kind, Setting, Turn
from vit_cli.benchmarks.machine import Machine
from vit_cli.benchmarks.workers import Failed, Worker
from vit_core.errors import InputError
from vit_core.schema import Flag, NonNegative, Real, Schema
from vit_core.storage import Location, staged_files

TURN_SECONDS = 0.5
"""A turn is at least this long, so that the clock and the waiting do not matter."""


class Timing(Schema):
    """How long a call takes, in seconds."""

    first: Real
    """The first call, with all that is built and compiled for it."""
    turns: tuple[Real, ...]
    """One call in each round."""
    host: tuple[Real, ...]
    """The same, until the call has been handed to the device: the host is free from then on."""

    processor: tuple[Real, ...]
    """The same, in time of all the process's threads together: what other programs do adds less to it."""

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def compiling(self) -> float:
        """By how much the first call takes longer than later ones: tracing and compiling, where that is done."""
        return max(self.first - self.median, 0)


class Measured(Schema):
    """What was measured of one contestant."""

    contestant: str
    framework: str
    forward: Timing
    train: Timing
    memory_bytes: NonNegative
    """The most that training took."""
    memory_on_device: Flag
    """Whether the device's memory is meant, not that of the process."""

    def timing(self, kind: Kind) -> Timing:
        return self.forward if kind == "forward" else self.train


class Part(Schema):
    """All contestants under one setting."""

    setting: Setting
    peak: Real
    """FLOP/s of a matrix product of 1024 x 1024 (on accelerators 8192 x 8192), the best that a contestant measured."""
    interleaved: Flag
    """Whether the contestants took turns. (A TPU serves one process only.)"""
    measured: tuple[Measured, ...]
    absent: dict[str, str]
    """Contestant -> what it lacks to take part."""
    failed: dict[str, str]
    """Contestant -> what went wrong in it."""

    def images_per_second(self, one: Measured, kind: Kind) -> float:
        """The median over the rounds."""
        return self.setting.batch_size / one.timing(kind).median

    def utilisation(self, one: Measured, kind: Kind) -> float:
        """Model FLOPs per second over the peak."""
        return self.images_per_second(one, kind) * self.setting.flops[kind] / self.peak

    def of(self, framework: str, ours: bool) -> list[Measured]:
        """The contestants of one framework, ours or the peers."""
        return [m for m in self.measured if m.framework == framework and m.contestant.startswith("vit_") == ours]

    def times_fastest_peer(self, one: Measured, kind: Kind) -> tuple[float, float, str] | None:
        """How many times as fast as the fastest peer of its framework, the same in processor time, and which one that
        is: medians of the ratios within each round. None without a peer."""
        peers = self.of(one.framework, ours=False)
        if not peers:
            return None
        peer = min(peers, key=lambda m: m.timing(kind).median)
        theirs, ours = peer.timing(kind), one.timing(kind)
        return _times(theirs.turns, ours.turns), _times(theirs.processor, ours.processor), peer.contestant


class Report(Schema):
    """The file of `vit bench model --json`."""

    machine: Machine
    parts: tuple[Part, ...] = ()


def _times(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def open_report(file: Location | None, machine: Machine) -> Report:
    """What a file has of earlier calls; an empty report where there is none. InputError where it is of another machine
    or other versions, whose figures must not stand beside new ones."""
    if file is None or not file.exists():
        return Report(machine=machine)
    try:
        report = Report.parse(json.loads(file.read_text()), str(file))
    except ValueError:
        raise InputError(f"{file}: not JSON; choose another --json file") from None
    if report.machine != machine:
        raise InputError(f"{file}: measured on another machine or with other versions; choose another --json file")
    return report


def write_report(file: Location, report: Report) -> None:
    """Replaces the file."""
    with staged_files(file.parent, (file.name,)) as stage:
        (stage / file.name).write_text(json.dumps(report.model_dump(mode="json"), indent=1) + "\n")


def finished(report: Report, setting: Setting, wanted: Sequence[Contestant], rounds: int) -> Part | None:
    """The part of a report that has all that is wanted of a setting, in so many rounds; None where there is none."""
    for part in report.parts:
        rounds_of = {m.contestant: len(m.forward.turns) for m in part.measured}
        if part.setting == setting and all(
            rounds_of.get(c.name, 0) >= rounds
            or c.name in part.failed
            or c.why_absent(setting.model) == part.absent.get(c.name, "")
            for c in wanted
        ):
            return part
    return None


def measure(
    setting: Setting,
    wanted: Sequence[Contestant],
    rounds: int,
    together: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> Part:
    """Measures the contestants that are present, and says of the others why they are missing.

    together: let them take turns; else one after another. progress: is called with what is done next.
    """
    absent = {c.name: why for c in wanted if (why := c.why_absent(setting.model)) is not None}
    failed: dict[str, str] = {}
    present = [c for c in wanted if c.name not in absent]
    groups = [present] if together else [[c] for c in present]
    measured: list[Measured] = []
    peaks: list[float] = []
    for group in groups:
        with ExitStack() as stack:
            racers = [_Racer(stack.enter_context(closing(Worker(c, setting)))) for c in group]
            for racer, what in _calls(racers, rounds):
                progress(f"{racer.name}, {what}")
                racer.call(what)
            failed |= {racer.name: racer.failure for racer in racers if racer.failure}
            measured += [racer.measured() for racer in racers if not racer.failure]
            peaks += [peak for racer in racers for peak in racer.peaks]
    if not measured:
        raise InputError(
            f"{setting}: nothing could be measured: {'; '.join(map(': '.join, (absent | failed).items()))}"
        )
    return Part(
        setting=setting,
        peak=max(peaks),
        interleaved=together,
        measured=tuple(measured),
        absent=absent,
        failed=failed,
    )


def number_of_calls(setting: Setting, wanted: Sequence[Contestant], rounds: int) -> int:
    """How often `measure` reports progress for a setting, at most."""
    return (2 * (rounds + 1) + 1) * sum(c.why_absent(setting.model) is None for c in wanted)


def _calls(racers: Sequence["_Racer"], rounds: int) -> Iterator[tuple["_Racer", str]]:
    """Who does what, in which order; one that has failed is left out from then on."""
    # The peak not at once: other contestants' processes are still importing then.
    for what in (*(f"first {kind}" for kind in KINDS), "peak"):
        yield from ((racer, what) for racer in racers if not racer.failure)
    order = deque(racers)
    for _ in range(rounds):
        for kind in KINDS:
            yield from ((racer, kind) for racer in tuple(order) if not racer.failure)
        order.rotate(-1)


class _Racer:
    """A contestant's worker, and what it has found."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.name, self.failure = worker, worker.contestant.name, ""
        self.peaks: list[float] = []
        self.first: dict[Kind, float] = {}
        self.turns: dict[Kind, list[Turn]] = {kind: [] for kind in KINDS}

    def call(self, what: str) -> None:
        try:
            if what == "peak":
                self.peaks.append(self.worker.peak())
            for kind in KINDS:
                if what == f"first {kind}":
                    self.first[kind] = self.worker.run(kind, 1).seconds
                elif what == kind:
                    self._take_turn(kind)
        except Failed as failed:
            self.failure = str(failed)

    def _take_turn(self, kind: Kind) -> None:
        once = self.worker.run(kind, 1).seconds
        self.turns[kind].append(self.worker.run(kind, ceil(TURN_SECONDS / once)))

    def measured(self) -> Measured:
        timings = {
            kind: Timing(
                first=self.first[kind],
                turns=tuple(turn.seconds for turn in turns),
                host=tuple(turn.host_seconds for turn in turns),
                processor=tuple(turn.processor_seconds for turn in turns),
            )
            for kind, turns in self.turns.items()
        }
        memory = self.worker.memory()
        return Measured(
            contestant=self.name,
            framework=self.worker.contestant.framework,
            memory_bytes=memory.bytes,
            memory_on_device=memory.on_device,
            **timings,
        )
