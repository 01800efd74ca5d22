"""Compares the outputs of a written checkpoint with those of its source, with the libraries on this machine."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_cli import console
from vit_cli.twins import installed_twin, twin
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.formats.expressing import Expressed
from vit_core.checkpoints.verification import Difference, difference, outputs_of, probes, read_back
from vit_core.config import TRAINING_ONLY
from vit_core.field_text import field_text
from vit_core.storage import Location, StorePath, is_local

Outputs = Sequence[np.ndarray]
"""The outputs of a model for each batch of images."""


@dataclass(frozen=True)
class ConversionCheck:
    """The differences between the outputs of the written checkpoint and those of its source."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """Notes on comparisons that were not made, and on values that the files do not contain."""

    @property
    def ok(self) -> bool:
        """Whether each difference is within its bound."""
        return all(each.ok for each in self.differences)

    @property
    def lines(self) -> tuple[str, ...]:
        """The differences and notes as lines of text."""
        return (*map(str, self.differences), *self.notes)


def compare_with_source(checkpoint: Checkpoint, target: Location, format: str, expressed: Expressed) -> ConversionCheck:
    """Compares the files written in a format with the checkpoint, and prints the result."""
    found = _check(checkpoint, target, format, expressed)
    for line in found.lines:
        console.say(line)
    return found


def _check(checkpoint: Checkpoint, target: Location, format: str, expressed: Expressed) -> ConversionCheck:
    written, missing = read_back(target, format, expressed.checkpoint.config.model)
    notes = []
    if missing:
        words = " ".join(f"--set {field_text(name, value)}" for name, value in missing.items())
        notes.append(f"the file alone does not contain: {words}")
    if (framework := installed_twin()) is None:
        return ConversionCheck((), (*notes, "not run: neither PyTorch nor JAX is installed"))
    batches, differences = probes(checkpoint.config), list[Difference]()
    with console.working("running both sides"):
        package = twin(framework)
        before, after = outputs_of(package, checkpoint, batches), outputs_of(package, written, batches)
        differences += _differences("read back", after, before, batches, expressed.bound)
        if framework == "torch":
            from vit_cli.format_checks import outputs_by_library
            from vit_torch.references import NotInstalled, bound_of

            try:
                model = expressed.checkpoint.config.model
                with _on_this_machine(target) as path:
                    theirs = outputs_by_library(path, format, model, batches)
                if theirs is not None:
                    bound = max(expressed.bound, bound_of(format, model))
                    differences += _differences(f"{format} itself", theirs, before, batches, bound)
            except NotInstalled as error:
                notes.append(str(error))
    if assumed := assumed_on_both_sides(checkpoint):
        notes.append(f"not verified: {assumed}; the source does not contain that, and both sides used the same value")
    return ConversionCheck(tuple(differences), tuple(notes))


def _differences(
    what: str, found: Outputs, expected: Outputs, batches: Sequence[np.ndarray], bound: float
) -> Iterator[Difference]:
    """One difference for each batch. The first batch has the model's image size; the others name theirs."""
    for i, (found_BC, expected_BC, x_BHWC) in enumerate(zip(found, expected, batches, strict=True)):
        _, height, width, _ = x_BHWC.shape
        yield difference(f"{what}, images of {height}x{width}" if i else what, found_BC, expected_BC, bound)


def assumed_on_both_sides(checkpoint: Checkpoint) -> str:
    """The assumed fields on which outputs depend, with their values: "heads=6 norm_epsilon=1e-06". Both sides use the
    same values, so equal outputs do not show that they are right."""
    assumed = (each for each in checkpoint.assumptions if each.field not in TRAINING_ONLY)
    return " ".join(field_text(each.field, each.value) for each in assumed)


@contextmanager
def _on_this_machine(path: Location) -> Iterator[Path]:
    """A file or folder that other libraries can open: the given one, or a temporary copy of one in a store."""
    if is_local(path):
        yield path
        return
    assert isinstance(path, StorePath)
    with tempfile.TemporaryDirectory(prefix="vit-") as scratch:
        copy = Path(scratch) / path.name
        if path.is_file():
            path.download(copy)
        for name, file in path.files().items() if path.is_dir() else ():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            file.download(copy / name)
        yield copy
