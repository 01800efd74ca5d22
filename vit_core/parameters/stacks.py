"""Stacks: the parameters of one kind in several blocks, kept as one array with a layer axis."""

from collections.abc import Iterable
from dataclasses import dataclass

from vit_core.parameters.row import Parameter


@dataclass(frozen=True)
class Stack:
    """Parameters of one kind in several blocks, which may be kept as one array with a layer axis first; or a parameter
    that stands in no block, by itself."""

    rows: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """ "blocks.0-11.attn.qkv.weight"; of a parameter in no block its own."""
        first = self.rows[0]
        layers = [row.layer for row in self.rows if row.layer is not None]
        return first.name.replace(f"blocks.{first.layer}.", f"blocks.{spans(layers)}.", 1) if layers else first.name

    @property
    def layers(self) -> int | None:
        """How many; none of a parameter in no block, which has no layer axis."""
        return None if self.rows[0].layer is None else len(self.rows)

    @property
    def jax(self) -> str:
        """Layout in the JAX twin, stacked."""
        return self.rows[0].jax if self.layers is None else f"layers {self.rows[0].jax}"

    @property
    def jax_shape(self) -> tuple[int, ...]:
        """Shape in the JAX twin, stacked."""
        return self.rows[0].jax_shape if self.layers is None else (self.layers, *self.rows[0].jax_shape)


def stacks(rows: Iterable[Parameter]) -> dict[str, Stack]:
    """The rows gathered in stacks, by name, in the order of their first rows."""
    alike: dict[str, list[Parameter]] = {}
    for row in rows:
        alike.setdefault(row.name.replace(f"blocks.{row.layer}.", "blocks.", 1), []).append(row)
    return {stack.name: stack for stack in (Stack(tuple(group)) for group in alike.values())}


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: "0-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
