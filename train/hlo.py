"""Collectives in the text of a compiled XLA program: which, how often a run of it executes them, how many bytes.

XLA's own cost analysis counts a loop's body once; here it counts as often as the loop goes round.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

BITS = {"pred": 8, "token": 0}
"""Of the element types whose name does not say it."""

SCATTERED = "all-reduce-scatter"
"""On a TPU a reduce-scatter is a fusion of this name, of an all-reduce and the slice of it that a device keeps."""


@dataclass(frozen=True)
class Collective:
    """One instruction, as one device sees it."""

    kind: str
    shape: str
    """Of what it gives, without layouts: "bf16[1024,4096]"; several arrays with commas between them."""
    size: int
    """Bytes of what it gives."""
    group: int
    """Devices that take part with this one, itself among them."""
    times: int
    """How often a run of the program executes it."""
    where: str
    """The operation it was made for ("jit(step)/jvp()/while/body/dot_general"), as far as XLA still knows."""

    @property
    def received(self) -> int:
        """Bytes that reach the device in a run, at least: those of a ring, where each passes on what it got."""
        size, group = self.times * self.size, self.group
        if self.kind == "collective-permute":
            return size
        if self.kind == "reduce-scatter":
            return size * (group - 1)
        return size * (group - 1) // group * (2 if self.kind == "all-reduce" else 1)


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    shape: str
    """With layouts; that of a tuple in parentheses."""
    opcode: str
    rest: str
    """Operands and attributes."""
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """What the first group of a pattern finds among the attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def called(self) -> list[str]:
        """The computations it runs once: a fusion's, a call's, those of a conditional's branches."""
        if branches := self.attribute(r"branch_computations=\{([^}]*)\}"):
            return re.findall(r"[\w.\-]+", branches)
        # Reductions apply a computation to pairs of numbers: that holds no collective.
        named = self.attribute(r"\bcalls=%?([\w.\-]+)")
        if self.opcode == "call":
            named = self.attribute(r"\bto_apply=%?([\w.\-]+)")
        return [named] if named else []

    @property
    def where(self) -> str:
        """The operation it was made for."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclass(frozen=True)
class Place:
    """Where an instruction is found, and how often that is run."""

    loop: str
    """The body of the innermost loop, or the program."""
    computation: str
    times: int
    where: str
    """Of the instruction that calls the computation."""


class Program:
    """A compiled program's computations, by name."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self.devices = int(partitions[1]) if partitions else 1
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                self.computations[head[2]] = current = []
                self.entry = head[2] if head[1] else self.entry
            elif instruction := parsed(line):
                current.append(instruction)

    @property
    def collectives(self) -> list[Collective]:
        """Every collective of a run; one in two halves, or spread over several fusions, once."""
        seen: dict[tuple[str, ...], Collective] = {}
        for place, instruction in self._walk(Place(self.entry, self.entry, 1, "")):
            if (found := self._collective(place, instruction)) is not None:
                channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
                seen.setdefault((place.loop, found.kind, channel), found)
        return list(seen.values())

    @property
    def uncounted(self) -> list[str]:
        """Loops that were taken to go round once, because nothing says how often they do."""
        every = (instruction for instructions in self.computations.values() for instruction in instructions)
        return [each.name for each in every if each.opcode == "while" and self._trips(each) is None]

    def _walk(self, place: Place) -> Iterator[tuple[Place, Instruction]]:
        """Each instruction of a computation and of those it runs."""
        for instruction in self.computations[place.computation]:
            yield place, instruction
            where = instruction.where or place.where
            if body := instruction.attribute(r"\bbody=%?([\w.\-]+)"):
                yield from self._walk(Place(body, body, place.times * (self._trips(instruction) or 1), where))
            for called in instruction.called:
                yield from self._walk(Place(place.loop, called, place.times, where))

    def _trips(self, loop: Instruction) -> int | None:
        """How often a loop goes round: as XLA says, else the bound that its condition compares with."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
            return int(known)
        condition = self.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)") or ""]
        bounds = [each.attribute(r"^\((\d+)\)") for each in condition if each.opcode == "constant"]
        # jax.lax.scan counts from 0 by 1, while the number is less than the length.
        counts_up = any("direction=LT" in each.rest for each in condition)
        return int(bounds[0]) if counts_up and len(bounds) == 1 and bounds[0] else None

    def _collective(self, place: Place, instruction: Instruction) -> Collective | None:
        """An instruction as a collective, if it is one; the second half of one in two halves is not."""
        kind, shapes = instruction.opcode.removesuffix("-start"), results(instruction)
        if kind not in KINDS:
            return None
        if kind == "all-reduce" and place.computation.startswith(SCATTERED):
            (kept,) = (each.shape for each in self.computations[place.computation] if each.root)
            kind, shapes = "reduce-scatter", arrays(kept)
        return Collective(
            kind=kind,
            shape=", ".join(shapes),
            size=sum(map(size, shapes)),
            group=group(instruction.rest, self.devices),
            times=place.times,
            where=instruction.where or place.where,
        )


def parsed(line: str) -> Instruction | None:
    """An instruction from its line; none for any other line."""
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)
    if found is None:
        return None
    root, name, text = found.groups()
    end = closing(text) if text.startswith("(") else text.find(" ")
    opcode, parenthesis, rest = text[end:].lstrip().partition("(")
    return Instruction(name, text[:end], opcode, parenthesis + rest, bool(root))


def closing(text: str) -> int:
    """Just after the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i + 1
    return len(text)


def results(instruction: Instruction) -> list[str]:
    """Shapes of the arrays an instruction gives; the first half of a collective gives what it took before them."""
    given = arrays(instruction.shape)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        given = [shape for shape in given if shape != "u32[]"]
        return given[len(given) // 2 :]
    return given


def arrays(shape: str) -> list[str]:
    """The arrays of a shape, without their layouts."""
    return re.findall(r"\w+\[[\d,]*\]", shape)


def size(array: str) -> int:
    """Bytes of an array, without padding: of "bf16[2,3]" 12."""
    kind, _, lengths = array.rstrip("]").partition("[")
    return prod(int(length) for length in lengths.split(",") if length) * bits(kind) // 8


def bits(kind: str) -> int:
    """Of an element; the first number in "bf16" or "f8e4m3fn"."""
    return BITS[kind] if kind in BITS else int(re.findall(r"\d+", kind)[0])


def group(attributes: str, everyone: int) -> int:
    """Devices in each replica group, in any of XLA's ways to write them; no group is all."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes):
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        # A part of an axis is written 'axis':(stride)length.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed[2])
        return prod(int(part or lengths[name]) for name, part in axes)
    return everyone


def by_kind(collectives: Iterable[Collective]) -> dict[str, list[Collective]]:
    """In the order of KINDS, what gives the most bytes in a run first."""
    ordered = sorted(collectives, key=lambda each: (KINDS.index(each.kind), -each.times * each.size))
    return {kind: list(each) for kind, each in groupby(ordered, key=lambda each: each.kind)}
