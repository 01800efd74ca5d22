"""How `vit bench model` shows its results."""

from vit_cli.benchmarks.contestants import KINDS
from vit_cli.benchmarks.machine import Machine
from vit_cli.benchmarks.model_speed import Part
from vit_cli.console import say, table
from vit_cli.twins import TITLES


def print_machine(machine: Machine) -> None:
    """Prints where it is measured, and with which versions."""
    cores = f"{machine.cores} core{'s' * (machine.cores > 1)}"
    devices = "; ".join(f"{TITLES[framework]} on {device}" for framework, device in machine.devices.items())
    say(f"machine    {machine.processor}, {cores}; {devices}")
    say(f"versions   Python {machine.python}, {', '.join(f'{name} {v}' for name, v in machine.versions.items())}")


def print_part(part: Part) -> None:
    """Prints what was measured under one setting: a table, what was skipped, and how the twins stand to their peers."""
    memory = "the device" if part.measured[0].memory_on_device else "the process"
    columns = (
        "",
        *("forward", "MFU", "train", "MFU"),
        *("first forward", "first step", "host a step", f"MiB of {memory}"),
    )
    table(f"{part.setting}; images/s", columns, [_row(part, i) for i in range(len(part.measured))])
    say(f"MFU: share of {part.peak / 1e9:,.0f} GFLOP/s, a large matrix product in the same run")
    if not part.interleaved:
        say("one after another, since a TPU serves one process")
    for name, why in (part.absent | part.failed).items():
        say(f"skipped {name}: {why}")
    for one in part.measured:
        times = [part.times_fastest_peer(one, kind) for kind in KINDS]
        if one.contestant.startswith("vit_") and all(times):
            shown = (
                f"{kind} {found[0]:.2f} x {found[2]} ({found[1]:.2f} in processor time)"
                for kind, found in zip(KINDS, times, strict=True)
                if found
            )
            say(f"{one.contestant}: {', '.join(shown)}")


def _row(part: Part, i: int) -> tuple[str, ...]:
    one = part.measured[i]
    speeds = ((f"{part.images_per_second(one, kind):,.2f}", f"{part.utilisation(one, kind):.0%}") for kind in KINDS)
    host = sorted(one.train.host)[len(one.train.host) // 2]
    return (
        one.contestant,
        *(cell for pair in speeds for cell in pair),
        f"{one.forward.first:.1f} s",
        f"{one.train.first:.1f} s",
        f"{host * 1e3:,.1f} ms",
        f"{one.memory_bytes / 2**20:,.0f}",
    )
