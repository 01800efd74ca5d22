"""The work of a device in one run of a compiled program: matrix products, memory traffic, and collectives that overlap
with products.

XLA's own analysis counts the body of a loop once; this module counts it once for each iteration. Only the text of the
program is analysed, so of a custom call (a Pallas kernel) only the arrays are counted.
"""

import re
from functools import cached_property, lru_cache
from math import prod

import numpy as np

from vit_core.schema import NonNegative, Real, Schema
from vit_train.planning.hlo import KINDS, Instruction, Place, Program, channel, element_bits

PRODUCTS = ("dot", "convolution")
KERNELS = ("tpu_custom_call", "__cublas", "__cudnn", "__gpu$")
"""Beginnings of the targets of custom calls that compute products: Pallas kernels on TPUs, libraries and Triton on
GPUs."""
_WITHOUT_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "opt-barrier", "partition-id", "iota",
}  # fmt: skip
"""Instructions that read and write no memory themselves."""
_WITHOUT_TRAFFIC_BY_TARGET = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls of XLA for TPUs that read and write no memory: they allocate the stacks of a loop, and treat adjacent
arrays as one array."""
_PARTS = ("dynamic-slice", "slice", "gather")
"""Instructions that read a part of their first operand."""
_WHOLE = ("bitcast", "reshape")
"""Instructions that change only the shape of their operand."""


class Work(Schema):
    """The work of one device in one run of a program."""

    flops: Real
    """FLOPs of products (dot, convolution): twice the multiply-adds, times the number of executions."""
    kernels: NonNegative
    """Number of executions of Pallas kernels. XLA does not see their products, so `flops` does not contain them."""
    moved: NonNegative
    """Bytes read from and written to the device's large memory (HBM), without collectives: every instruction reads its
    operands and writes its results once, in the layouts of the program with their padding; of a sliced array only the
    slice is counted."""
    received: NonNegative
    """Lower bound of the bytes that the device receives in collectives."""
    hidden: NonNegative
    """The part of `received` in collectives that begin before a product and end after it."""
    cycles: NonNegative
    """XLA's own estimate of a device's cycles, without collectives; 0 if XLA gives none (on devices other than
    TPUs)."""


def work_of(program: Program) -> Work:
    """The work of one device in one run of a program."""
    device = _Device(program)
    moved = flops = cycles = kernels = 0
    for place, instruction in program.walk():
        if instruction.opcode in PRODUCTS:
            flops += place.times * device.product_flops(place.computation, instruction)
        kernels += place.times * ((target_of(instruction) or "").startswith(KERNELS))
        if not place.fused:
            moved += place.times * device.traffic(place.computation, instruction)
            cycles += place.times * int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    hidden = device.hidden_channels
    collectives = program.collectives
    return Work(
        flops=float(flops),
        kernels=kernels,
        moved=moved,
        received=sum(each.received for each in collectives),
        hidden=sum(each.received for each in collectives if each.channel in hidden),
        cycles=cycles,
    )


class _Device:
    """Computes the work of one device from the instructions of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.named = {
            name: {each.name: each for each in instructions} for name, instructions in program.computations.items()
        }

    def product_flops(self, computation: str, product: Instruction) -> int:
        """FLOPs of one execution of a dot or a convolution."""
        left, right = (lengths(self.named[computation][name].shape) for name in product.operands[:2])
        if product.opcode == "dot":
            contracted = product.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            return 2 * prod(lengths(product.shape)) * prod(left[int(axis)] for axis in contracted.split(",") if axis)
        return 2 * _convolution_products(product, left, right, lengths(product.shape))

    def traffic(self, computation: str, instruction: Instruction) -> int:
        """Bytes that an instruction outside of fusions reads from and writes to the large memory."""
        named = self.named[computation]
        if instruction.opcode.endswith("-done") and not _sends(instruction):  # a copy is counted where it ends
            start = named[instruction.operands[0]]
            read = sum(large(named[name].shape) for name in start.operands)
            return min(read, held(instruction.shape)) + large(instruction.shape)
        if instruction.opcode in _WITHOUT_TRAFFIC or instruction.opcode.endswith("-start") or _sends(instruction):
            return 0
        if target_of(instruction) in _WITHOUT_TRAFFIC_BY_TARGET:
            return 0
        if instruction.opcode == "fusion":
            (called,) = instruction.called
            inner = self.program.computations[called]
            parameters = {each.attribute(r"^\((\d+)\)"): each.name for each in inner if each.opcode == "parameter"}
            read = sum(
                min(large(named[name].shape), self._read(called, parameters[str(i)]))
                for i, name in enumerate(instruction.operands)
            )
            return read + self._written(called, instruction)
        read = sum(large(named[name].shape) for name in instruction.operands)
        if instruction.opcode in _PARTS:
            return min(read, held(instruction.shape)) + large(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            update = named[instruction.operands[1]].shape
            return large(update) + (held(update) if large(instruction.shape) else 0)
        return read + large(instruction.shape)

    def _read(self, computation: str, name: str) -> int:
        """Number of bytes of a value that the instructions of a fusion read."""
        whole, read = held(self.named[computation][name].shape), 0
        for user in self._users[computation].get(name, ()):
            first = user.operands[0] == name
            if user.opcode in _PARTS and first:
                read += held(user.shape)
            elif user.opcode == "dynamic-update-slice" and first:
                read += 0  # it is overwritten where it is
            elif user.opcode == "tuple" or _sends(user):
                read += 0
            elif user.opcode in _WHOLE:
                read += self._read(computation, user.name)
            elif user.opcode == "fusion":
                (called,) = user.called
                for i, operand in enumerate(user.operands):
                    if operand == name:
                        read += self._read(called, self._parameter(called, i))
            else:
                return whole
        return min(read, whole)

    def _parameter(self, computation: str, i: int) -> str:
        """Name of a computation's parameter number i."""
        of_number = (each for each in self.program.computations[computation] if each.opcode == "parameter")
        return next(each.name for each in of_number if each.attribute(r"^\((\d+)\)") == str(i))

    def _written(self, computation: str, fusion: Instruction) -> int:
        """Bytes of a fusion's results that it writes to the large memory."""
        named = self.named[computation]
        (root,) = (each for each in named.values() if each.root)
        arrays = arrays_of(fusion.shape)
        results = [named[name] for name in root.operands] if root.opcode == "tuple" else [root] * len(arrays)
        written = 0
        for result, (size, on_chip) in zip(results, arrays, strict=True):
            while result.opcode in _WHOLE:
                result = named[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                size = held(named[result.operands[1]].shape)
            if not on_chip and result.opcode != "parameter" and not _sends(result):
                written += size
        return written

    @cached_property
    def _users(self) -> dict[str, dict[str, list[Instruction]]]:
        """Computation -> name of an instruction -> the instructions that have its result as an operand."""
        found: dict[str, dict[str, list[Instruction]]] = {}
        for computation, instructions in self.program.computations.items():
            of_name = found.setdefault(computation, {})
            for instruction in instructions:
                for name in dict.fromkeys(instruction.operands):
                    of_name.setdefault(name, []).append(instruction)
        return found

    @cached_property
    def hidden_channels(self) -> set[str]:
        """Channels of the collectives during which a product is executed."""
        hidden: set[str] = set()
        for computation in {place.computation for place, _ in self.program.walk() if not place.fused}:
            under_way: dict[str, list[int]] = {}
            products = []
            for i, instruction in enumerate(self.program.computations[computation]):
                place = Place(computation, computation, 1, "")
                parts = [each for _, each in self.program.walk_from(place, instruction)]
                if any(each.opcode in PRODUCTS for each in parts):
                    products.append(i)
                if instruction.opcode.removesuffix("-done") in KINDS and instruction.opcode.endswith("-done"):
                    parts += [self.named[computation][instruction.operands[0]]]
                if instruction.opcode != "while":
                    for each in parts:
                        if each.opcode.removesuffix("-start") in KINDS:
                            under_way.setdefault(channel(each), []).append(i)
            hidden |= {name for name, at in under_way.items() if any(min(at) <= i <= max(at) for i in products)}
        return hidden


def target_of(instruction: Instruction) -> str | None:
    """The target of a custom call; None for other instructions."""
    return instruction.attribute(r'custom_call_target="([^"]+)"') if instruction.opcode == "custom-call" else None


def _sends(instruction: Instruction) -> bool:
    """Whether an instruction is a collective, or the start or end of a collective that XLA has put into fusions."""
    kind = instruction.opcode.removesuffix("-start").removesuffix("-done")
    return kind in KINDS or (instruction.opcode == "custom-call" and "AsyncCollective" in instruction.rest)


def _convolution_products(convolution: Instruction, left: list[int], right: list[int], result: list[int]) -> int:
    """Multiply-adds of a convolution, without multiplications by padding or by the zeros of dilation. (On TPUs, batched
    matrix products are convolutions with such dilation.)"""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.rest)
    assert labels is not None
    sides, kernel, out = labels.groups()
    groups = int(convolution.attribute(r"feature_group_count=(\d+)") or 1)
    batches = int(convolution.attribute(r"batch_group_count=(\d+)") or 1)
    count = left[sides.index("b")] // batches * (left[sides.index("f")] // groups) * result[out.index("f")]
    window = convolution.attribute(r"window=\{([^}]*)\}") or ""
    for axis in (label for label in sides if label.isdigit()):
        i = int(axis)
        low, _, _ = _along(window, "pad", i, "0_0").partition("_")
        count *= _valid_pairs(
            left[sides.index(axis)],
            right[kernel.index(axis)],
            result[out.index(axis)],
            int(_along(window, "stride", i, "1")),
            int(low),
            int(_along(window, "lhs_dilate", i, "1")),
            int(_along(window, "rhs_dilate", i, "1")),
        )
    return count


def _along(window: str, name: str, axis: int, default: str) -> str:
    """The value of a window's attribute along an axis, as text."""
    found = re.search(rf"\b{name}=(\S+)", window)
    return found[1].split("x")[axis] if found else default


@lru_cache(maxsize=4096)
def _valid_pairs(length: int, kernel: int, result: int, stride: int, low: int, holes: int, spread: int) -> int:
    """Number of multiplications of a weight with a value along one axis. low: padding before the first value; holes:
    distance of the values; spread: distance of the weights."""
    at = np.arange(result)[:, None] * stride - low + np.arange(kernel) * spread
    return int(((at >= 0) & (at % holes == 0) & (at // holes < length)).sum())


def lengths(shape: str) -> list[int]:
    """Lengths of the first array of a shape."""
    found = re.search(r"\w+\[([\d,]*)\]", shape)
    return [int(length) for length in found[1].split(",") if length] if found else []


def arrays_of(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a result, with the padding of its layout, and whether it is in a TPU's on-chip memory."""
    found = re.findall(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?", shape)
    return [
        (_padded(kind, sides, layout), re.search(r"S\([1-9]\)", layout) is not None) for kind, sides, layout in found
    ]


@lru_cache(maxsize=4096)
def _padded(kind: str, sides: str, layout: str) -> int:
    order, _, tiles = layout.partition(":")
    given = [int(length) for length in sides.split(",") if length]
    minor_first = [given[int(axis)] for axis in order.split(",") if axis] or given[::-1]
    if tile := re.search(r"T\(([\d,]+)\)", tiles):
        for i, length in enumerate(int(length) for length in reversed(tile[1].split(","))):
            if i < len(minor_first):
                minor_first[i] = -(-minor_first[i] // length) * length
    return prod(minor_first) * element_bits(kind) // 8


def held(shape: str) -> int:
    """Bytes of all arrays of a result."""
    return sum(size for size, _ in arrays_of(shape))


def large(shape: str) -> int:
    """Bytes of the arrays of a result that are in the large memory (HBM)."""
    return sum(size for size, on_chip in arrays_of(shape) if not on_chip)
