"""Reads the collectives from the text of a compiled XLA program: their kinds, numbers of executions and bytes.

XLA's own cost analysis counts the body of a loop once; this module counts it once for each iteration.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

BITS = {"pred": 8, "token": 0}
"""Bits of the element types whose names do not contain them."""

SCATTERED = "all-reduce-scatter"
"""Name of TPU fusions that are a reduce-scatter: an all-reduce, then a slice of the part that a device keeps."""


@dataclass(frozen=True)
class Collective:
    """One collective instruction, as one device executes it."""

    kind: str
    shape: str
    """Shape of its result, without layouts: "bf16[1024,4096]"; several arrays are separated by commas."""
    size: int
    """Bytes of its result."""
    group: int
    """Number of participating devices, including this one."""
    times: int
    """Number of executions in one run of the program."""
    where: str
    """The operation that it was made for ("jit(step)/jvp()/while/body/dot_general"), if XLA has kept it."""
    channel: str = ""
    """Identifier that the parts of one collective share in the program."""

    @property
    def received(self) -> int:
        """Lower bound of the bytes that the device receives in a run: those of a ring algorithm, in which each device
        passes on the data that it received."""
        size, group = self.times * self.size, self.group
        if self.kind == "collective-permute":
            return size
        if self.kind == "reduce-scatter":
            return size * (group - 1)
        return size * (group - 1) // group * (2 if self.kind == "all-reduce" else 1)


@dataclass(frozen=True)
class Instruction:
    """One instruction: a line of a computation in the text of an XLA program."""

    name: str
    shape: str
    """Shape of the result with layouts; the shape of a tuple is in parentheses."""
    opcode: str
    rest: str
    """Operands and attributes."""
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """The text that the first group of a pattern matches in the operands and attributes; None without a match."""
        match = re.search(pattern, self.rest)
        return match[1] if match else None

    @property
    def called(self) -> list[str]:
        """Names of the computations that it executes once: those of a fusion, a call, or a conditional's branches."""
        if branches := self.attribute(r"branch_computations=\{([^}]*)\}"):
            return re.findall(r"[\w.\-]+", branches)
        # Reductions apply a computation to pairs of numbers, which contains no collective.
        named = self.attribute(r"\bcalls=%?([\w.\-]+)")
        if self.opcode == "call":
            named = self.attribute(r"\bto_apply=%?([\w.\-]+)")
        return [named] if named else []

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results are its operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: end_of_parentheses(self.rest)])

    @property
    def where(self) -> str:
        """The operation that it was made for; "" if XLA has not kept it."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclass(frozen=True)
class Place:
    """Position of an instruction in a program."""

    loop: str
    """Name of the body of the innermost loop; outside loops, of the program."""
    computation: str
    times: int
    """Number of executions of the computation in one run."""
    where: str
    """The operation that the instruction which calls the computation was made for."""
    fused: bool = False
    """Whether the instruction is part of a fusion. Intermediate values of a fusion are not written to memory."""


class Program:
    """The computations of a compiled program, by name, read from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self.devices = int(partitions[1]) if partitions else 1
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
                self.computations[head[2]] = current = []
                self.entry = head[2] if head[1] else self.entry
            elif instruction := parse_instruction(line):
                current.append(instruction)

    @property
    def collectives(self) -> list[Collective]:
        """Every collective of a run. A collective that XLA has split into two halves or over several fusions is listed
        once."""
        seen: dict[tuple[str, ...], Collective] = {}
        for place, instruction in self.walk():
            if (collective := self._collective(place, instruction)) is not None:
                seen.setdefault((place.loop, collective.kind, channel(instruction)), collective)
        return list(seen.values())

    @property
    def uncounted(self) -> list[str]:
        """Loops that are counted as one iteration, because their number of iterations is unknown."""
        every = (instruction for instructions in self.computations.values() for instruction in instructions)
        return [each.name for each in every if each.opcode == "while" and self._trips(each) is None]

    def walk(self) -> Iterator[tuple[Place, Instruction]]:
        """Each instruction of the program and of the computations that it executes, with its position."""
        for instruction in self.computations[self.entry]:
            yield from self.walk_from(Place(self.entry, self.entry, 1, ""), instruction)

    def walk_from(self, place: Place, instruction: Instruction) -> Iterator[tuple[Place, Instruction]]:
        """An instruction at a place, and each of the computations that it executes."""
        yield place, instruction
        where, inner = instruction.where or place.where, []
        if body := instruction.attribute(r"\bbody=%?([\w.\-]+)"):
            inner.append(Place(body, body, place.times * (self._trips(instruction) or 1), where))
        fused = place.fused or instruction.opcode not in ("call", "conditional")
        inner += [Place(place.loop, called, place.times, where, fused) for called in instruction.called]
        for each in inner:
            for called in self.computations[each.computation]:
                yield from self.walk_from(each, called)

    def _trips(self, loop: Instruction) -> int | None:
        """Number of iterations of a loop, as stated by XLA, or else the bound in its condition; None if unknown."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
            return int(known)
        condition = self.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)") or ""]
        bounds = [each.attribute(r"^\((\d+)\)") for each in condition if each.opcode == "constant"]
        # jax.lax.scan counts from 0 in steps of 1, while the counter is less than the length.
        counts_up = any("direction=LT" in each.rest for each in condition)
        return int(bounds[0]) if counts_up and len(bounds) == 1 and bounds[0] else None

    def _collective(self, place: Place, instruction: Instruction) -> Collective | None:
        """An instruction as a collective; None for other instructions, and for the second half of a collective."""
        kind, shapes = instruction.opcode.removesuffix("-start"), result_arrays(instruction)
        if kind not in KINDS:
            return None
        if kind == "all-reduce" and place.computation.startswith(SCATTERED):
            (kept,) = (each.shape for each in self.computations[place.computation] if each.root)
            kind, shapes = "reduce-scatter", array_shapes(kept)
        return Collective(
            kind=kind,
            shape=", ".join(shapes),
            size=sum(map(array_bytes, shapes)),
            group=group_size(instruction.rest, self.devices),
            times=place.times,
            where=instruction.where or place.where,
            channel=channel(instruction),
        )


def channel(collective: Instruction) -> str:
    """Identifier that the parts of one collective share: its channel, or its name if it has no channel."""
    return collective.attribute(r"channel_id=(\d+)") or collective.name


def parse_instruction(line: str) -> Instruction | None:
    """The instruction on a line; None for a line without one."""
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)
    if match is None:
        return None
    root, name, text = match.groups()
    end = end_of_parentheses(text) if text.startswith("(") else text.find(" ")
    opcode, parenthesis, rest = text[end:].lstrip().partition("(")
    return Instruction(name, text[:end], opcode, parenthesis + rest, bool(root))


def end_of_parentheses(text: str) -> int:
    """Index just after the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i + 1
    return len(text)


def result_arrays(instruction: Instruction) -> list[str]:
    """Shapes of the arrays that an instruction returns. (The first half of a collective returns its operands too,
    before its results.)"""
    given = array_shapes(instruction.shape)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        given = [shape for shape in given if shape != "u32[]"]
        return given[len(given) // 2 :]
    return given


def array_shapes(shape: str) -> list[str]:
    """The shapes of arrays in the shape of a result, without their layouts."""
    return re.findall(r"\w+\[[\d,]*\]", shape)


def array_bytes(array: str) -> int:
    """Bytes of an array, without padding: 12 for "bf16[2,3]"."""
    kind, _, lengths = array.rstrip("]").partition("[")
    return prod(int(length) for length in lengths.split(",") if length) * element_bits(kind) // 8


def element_bits(kind: str) -> int:
    """Bits of an element: the first number in "bf16" or "f8e4m3fn"."""
    return BITS[kind] if kind in BITS else int(re.findall(r"\d+", kind)[0])


def group_size(attributes: str, everyone: int) -> int:
    """Number of devices in each replica group, in any of XLA's notations; without groups, all devices."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes):
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        # A part of an axis is written as 'axis':(stride)length.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed[2])
        return prod(int(part or lengths[name]) for name, part in axes)
    return everyone


def by_kind(collectives: Iterable[Collective]) -> dict[str, list[Collective]]:
    """Collectives by kind, in the order of KINDS; within a kind, those with the most bytes in a run come first."""
    ordered = sorted(collectives, key=lambda each: (KINDS.index(each.kind), -each.times * each.size))
    return {kind: list(each) for kind, each in groupby(ordered, key=lambda each: each.kind)}
