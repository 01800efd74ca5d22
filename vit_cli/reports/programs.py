"""Prints the work of a chip in compiled train steps, for `vit bench program`."""

from collections.abc import Iterator

from vit_cli.benchmarks.programs import Programs
from vit_cli.console import say, table
from vit_cli.reports.plan import size
from vit_train.planning.topologies import Chip

COLUMNS = ("a chip, a step", "GFLOPs", "model's", "moved", "received", "hidden", "Mcycles", "memory")
NOTES = (
    "GFLOPs: of products; model's: the model's FLOPs over them (no gradient of the images is computed)",
    "moved: to and from the chip's large memory; received: by collectives; hidden: of that, behind products",
    "Mcycles: XLA's own estimate, without collectives; memory: needed of {capacity}",
)


def print_programs(found: Programs, chip: Chip) -> None:
    """Prints a row for each step, the trainer's step compared with the others, and steps that could not be compiled."""
    setting = found.setting
    title = f"{setting.variant}, batch {setting.batch_size}, {setting.dtype}, {found.topology} ({found.devices} chips)"
    table(title, COLUMNS, _rows(found))
    for note in NOTES:
        say(note.format(capacity=size(chip.memory)))
    for name, why in found.absent.items():
        say(f"skipped {name}: {why}")


def _rows(found: Programs) -> Iterator[tuple[str, ...]]:
    for name, compiled in found.compiled.items():
        work = compiled.work
        if work is None:
            yield name, *["-"] * (len(COLUMNS) - 3), "does not fit", size(compiled.needed)
            continue
        yield (
            name,
            f"{work.flops / 1e9:,.1f}",
            f"{found.model_flops / work.flops:.1%}",
            size(work.moved),
            size(work.received),
            f"{work.hidden / work.received:.0%}" if work.received else "-",
            f"{work.cycles / 1e6:,.1f}" if work.cycles else "-",
            size(compiled.needed),
        )
