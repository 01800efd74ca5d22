"""`vit bench model`: the speed of the forward pass and the train step of both twins and of other libraries' models.

The implementations of a setting take turns, so that other programs on the machine affect all of them. Each round begins
with another implementation, so that none always follows the same one. A turn is one call that is not measured, then
several that are. Medians over rounds are compared.
"""

import json
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from math import ceil

from vit_cli.benchmarks.implementations import KINDS, Implementation, Kind, Setting, Turn
from vit_cli.benchmarks.machine import Machine
from vit_cli.benchmarks.workers import Failed, Worker
from vit_core.errors import InputError
from vit_core.schema import Flag, NonNegative, Real, Schema
from vit_core.storage import Location, json_report, staged_files

TURN_SECONDS = 0.5
"""Shortest time of a turn, so that the clock's resolution and the final wait do not matter."""


class Timing(Schema):
    """Times of calls, in seconds."""

    first: Real
    """The first call, including building and compiling."""
    turns: tuple[Real, ...]
    """One call in each round."""
    host: tuple[Real, ...]
    """The same, until the call is dispatched to the device; the host is free afterwards."""

    processor: tuple[Real, ...]
    """The same, in processor time of all threads of the process; other programs affect it less."""

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def compiling(self) -> float:
        """The first call's time minus that of later ones: tracing and compiling, if there is any."""
        return max(self.first - self.median, 0)


class Measured(Schema):
    """The measurements of one implementation."""

    implementation: str
    framework: str
    forward: Timing
    train: Timing
    memory_bytes: NonNegative
    """The most that training took."""
    memory_on_device: Flag
    """Whether this is the device's memory instead of the process's."""

    def timing(self, kind: Kind) -> Timing:
        return self.forward if kind == "forward" else self.train


class Part(Schema):
    """All implementations under one setting."""

    setting: Setting
    peak: Real
    """FLOP/s of a matrix product of at most 1024 x 1024 (on accelerators 8192 x 8192), the best of all processes."""
    interleaved: Flag
    """Whether the implementations took turns. (A TPU serves one process only.)"""
    measured: tuple[Measured, ...]
    absent: dict[str, str]
    """Implementation -> the reason why it was not measured."""
    failed: dict[str, str]
    """Implementation -> its error."""

    def images_per_second(self, one: Measured, kind: Kind) -> float:
        """The median over the rounds."""
        return self.setting.batch_size / one.timing(kind).median

    def utilisation(self, one: Measured, kind: Kind) -> float:
        """Model FLOPs per second over the peak."""
        return self.images_per_second(one, kind) * self.setting.flops[kind] / self.peak

    def of(self, framework: str, ours: bool) -> list[Measured]:
        """The implementations of one framework: ours, or the peers."""
        return [m for m in self.measured if m.framework == framework and m.implementation.startswith("vit_") == ours]

    def times_fastest_peer(self, one: Measured, kind: Kind) -> tuple[float, float, str] | None:
        """Speed relative to the fastest peer of its framework, the same in processor time, and the peer's name; medians
        of the ratios within each round. None without a peer."""
        peers = self.of(one.framework, ours=False)
        if not peers:
            return None
        peer = min(peers, key=lambda m: m.timing(kind).median)
        theirs, ours = peer.timing(kind), one.timing(kind)
        return _times(theirs.turns, ours.turns), _times(theirs.processor, ours.processor), peer.implementation


WRITTEN = json_report("a file of vit bench model", "machine", "parts")
"""The files that `vit bench model --json` replaces."""


class Report(Schema):
    """The file of `vit bench model --json`."""

    machine: Machine
    parts: tuple[Part, ...] = ()


def _times(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def open_report(file: Location | None, machine: Machine) -> Report:
    """The report of earlier calls in a file; an empty report if there is none. Raises InputError if it is from another
    machine or other versions, because their figures are not comparable."""
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


def finished(report: Report, setting: Setting, wanted: Sequence[Implementation], rounds: int) -> Part | None:
    """The part of a report with all wanted implementations of a setting and `rounds` rounds; None if there is none."""
    for part in report.parts:
        rounds_of = {m.implementation: len(m.forward.turns) for m in part.measured}
        if part.setting == setting and all(
            rounds_of.get(c.name, 0) >= rounds
            or c.name in part.failed
            or c.why_absent(setting) == part.absent.get(c.name, "")
            for c in wanted
        ):
            return part
    return None


def measure(
    setting: Setting,
    wanted: Sequence[Implementation],
    rounds: int,
    together: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> Part:
    """Measures the implementations that are installed, and records for the others why they are missing.

    together: let them take turns; otherwise one after another. progress: called with the next action.
    """
    absent = {c.name: why for c in wanted if (why := c.why_absent(setting)) is not None}
    failed: dict[str, str] = {}
    present = [c for c in wanted if c.name not in absent]
    groups = [present] if together else [[c] for c in present]
    measured: list[Measured] = []
    peaks: list[float] = []
    for group in groups:
        with ExitStack() as stack:
            running = [_Measurement(stack.enter_context(closing(Worker(c, setting)))) for c in group]
            for measurement, what in _calls(running, rounds):
                progress(f"{measurement.name}, {what}")
                measurement.call(what)
            failed |= {one.name: one.failure for one in running if one.failure}
            measured += [one.measured() for one in running if not one.failure]
            peaks += [peak for one in running for peak in one.peaks]
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


def number_of_calls(setting: Setting, wanted: Sequence[Implementation], rounds: int) -> int:
    """Largest number of progress reports of `measure` for a setting."""
    return (2 * (rounds + 1) + 1) * sum(c.why_absent(setting) is None for c in wanted)


def _calls(measurements: Sequence["_Measurement"], rounds: int) -> Iterator[tuple["_Measurement", str]]:
    """The actions in order; an implementation that has failed is left out afterwards."""
    # The peak is not measured first, because other implementations' processes are still importing then.
    for what in (*(f"first {kind}" for kind in KINDS), "peak"):
        yield from ((measurement, what) for measurement in measurements if not measurement.failure)
    order = deque(measurements)
    for _ in range(rounds):
        for kind in KINDS:
            yield from ((measurement, kind) for measurement in tuple(order) if not measurement.failure)
        order.rotate(-1)


class _Measurement:
    """An implementation's worker and its measurements."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.name, self.failure = worker, worker.implementation.name, ""
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
            implementation=self.name,
            framework=self.worker.implementation.framework,
            memory_bytes=memory.bytes,
            memory_on_device=memory.on_device,
            **timings,
        )
