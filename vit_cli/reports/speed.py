"""Prints the results of `vit bench model`, `train`, `input`, `sources` and `scaling`."""

import os
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from vit_cli.benchmarks.implementations import KINDS
from vit_cli.benchmarks.machine import Machine
from vit_cli.benchmarks.model_speed import Part
from vit_cli.console import say, table
from vit_cli.twins import TITLES

if TYPE_CHECKING:
    from vit_cli.benchmarks.loop_speed import LoopSpeed


def print_machine(machine: Machine) -> None:
    """Prints the machine and the versions of a measurement."""
    cores = f"{machine.cores} core{'s' * (machine.cores > 1)}"
    devices = "; ".join(f"{TITLES[framework]} on {device}" for framework, device in machine.devices.items())
    say(f"machine    {machine.processor}, {cores}; {devices}")
    say(f"versions   Python {machine.python}, {', '.join(f'{name} {v}' for name, v in machine.versions.items())}")


def warn_if_busy() -> None:
    """Warns if other programs use a quarter of the cores or more: then only ratios are meaningful, not images/s."""
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 4:
        say(f"warning: the machine is busy (load {load:.1f} on {cores} cores): compare ratios, not images/s")


def print_part(part: Part) -> None:
    """Prints the results for one setting: a table, skipped implementations, and the twins compared with their peers."""
    memory = "the device" if part.measured[0].memory_on_device else "the process"
    columns = (
        "",
        *("forward", "MFU", "train", "MFU"),
        *("first step", "compiling", "host per step", f"MiB of {memory}"),
    )
    table(f"{part.setting}; images/s", columns, [_row(part, i) for i in range(len(part.measured))])
    say(f"MFU: share of {part.peak / 1e9:,.0f} GFLOP/s, a large matrix product in the same run")
    if not part.interleaved:
        say("one after another, since a TPU serves one process")
    for name, why in (part.absent | part.failed).items():
        say(f"skipped {name}: {why}")
    for one in part.measured:
        times = [part.times_fastest_peer(one, kind) for kind in KINDS]
        if one.implementation.startswith("vit_") and all(times):
            shown = (
                f"{kind} {found[0]:.2f} x {found[2]} ({found[1]:.2f} in processor time)"
                for kind, found in zip(KINDS, times, strict=True)
                if found
            )
            say(f"{one.implementation}: {', '.join(shown)}")


def print_loops(title: str, speeds: "Mapping[str, LoopSpeed]") -> None:
    """Prints the speed of a run's loop beside that of its step, for each framework. Warns if a loop is faster."""
    rows = []
    for name, found in speeds.items():
        spread = f"{found.ratio:.0%} ({min(found.ratios):.0%} to {max(found.ratios):.0%})"
        shares = spread, f"{found.data_wait:.1%}", f"{found.saving:.1%}", f"{found.mfu:.0%}"
        rows.append((name, found.hardware, f"{median(found.bare):,.2f}", f"{median(found.loop):,.2f}", *shares))
    table(title, ("", "on", "bare step", "loop", "loop / bare", "waits for data", "saving", "MFU"), rows)
    for name, found in speeds.items():
        if found.ratio > 1:
            say(
                f"warning: {name}: the loop was faster than its own step, so other programs disturbed the measurement; "
                "repeat it with more --steps and --rounds"
            )


def print_input(title: str, speeds: Mapping[str, Sequence[float]]) -> None:
    """Prints images/s of each way of making training images, and its ratio to torchvision on PIL."""
    from vit_cli.benchmarks.input_speed import PILLOW, times_pillow  # which need the packages for training

    rows = []
    for name, of_rounds in speeds.items():
        times = times_pillow(speeds, name)
        rows.append((name, f"{median(of_rounds):,.0f}", "-" if times is None else f"{times:.2f}"))
    table(title, ("", "images/s a core", f"times {PILLOW}"), rows)


def print_exponents(exponents: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the growth of costs: a row for the FLOPs and for each framework."""
    from vit_cli.benchmarks.scaling import BASE, described  # which need the packages for training

    columns = tuple(next(iter(exponents.values())))
    rows = [(title, *(f"{of[name]:.2f}" for name in columns)) for title, of in exponents.items()]
    table(f"exponent of a train step's cost: {described(BASE)}", ("", *columns), rows)


def print_host_seconds(host_seconds: Mapping[str, float]) -> None:
    """Prints the host's time for a step."""
    from vit_cli.benchmarks.scaling import HOST, described  # which need the packages for training

    costs = [(name, f"{seconds * 1e3:.2f} ms") for name, seconds in host_seconds.items()]
    table(f"host's time for a step: {described(HOST)}", ("", "host per step"), costs)


def _row(part: Part, i: int) -> tuple[str, ...]:
    one = part.measured[i]
    speeds = ((f"{part.images_per_second(one, kind):,.2f}", f"{part.utilisation(one, kind):.0%}") for kind in KINDS)
    host = sorted(one.train.host)[len(one.train.host) // 2]
    return (
        one.implementation,
        *(cell for pair in speeds for cell in pair),
        f"{one.train.first:.1f} s",
        f"{one.train.compiling:.1f} s",
        f"{host * 1e3:,.1f} ms",
        f"{one.memory_bytes / 2**20:,.0f}",
    )


def print_sources(examples: int, speeds: Mapping[str, Sequence[float]], times_prepared: Mapping[str, float]) -> None:
    """Prints examples per second from each kind of source, and the ratio to a prepared set."""
    rows = [(name, f"{median(rounds):,.0f}", f"{times_prepared[name]:.2f}") for name, rounds in speeds.items()]
    table(f"{examples:,} examples in random order", ("", "examples/s", "times a prepared set"), rows)
