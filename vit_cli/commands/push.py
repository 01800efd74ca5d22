"""`vit push`"""

import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli import console, conversion_check
from vit_cli.hub_repository import MODEL_CARD, HubRepository
from vit_cli.option_types import AS_RECORDED, Place, ReadingOptions
from vit_core.checkpoints import save_checkpoint
from vit_core.checkpoints.saving import express_for

HubFormat = Literal["vit", "timm", "transformers"]
"""The formats that a library opens by the name of a repository."""


def push(
    checkpoint: Place,
    repository: Annotated[str, Parameter(metavar="USER/MODEL")],
    /,
    *,
    to: HubFormat = "vit",
    private: Annotated[bool, Parameter(negative=())] = False,
    revision: Annotated[str, Parameter(metavar="BRANCH")] | None = None,
    message: Annotated[str, Parameter(metavar="TEXT")] | None = None,
    license: Annotated[str, Parameter(metavar="NAME")] | None = None,
    reading: ReadingOptions = AS_RECORDED,
    allow_lossy: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Upload a checkpoint to the Hugging Face Hub, with a model card.

    The checkpoint is written in the chosen format and compared with the original, as vit convert does; nothing is
    uploaded if the outputs differ by more than 1e-12. The model card describes the origin of the weights, their
    training and evaluation, the accuracy of the conversion, and how to load them. All files are uploaded as one commit,
    so an interrupted upload changes nothing. The address hf://USER/MODEL reads the checkpoint again.

    Log in first, with hf auth login, or set HF_TOKEN.

    Examples:
        vit push runs/cifar10 USER/MODEL
        vit push runs/cifar10 USER/MODEL --to transformers --private
        vit push runs/cifar10/steps/000100 USER/MODEL --revision step-100
        vit push runs/cifar10 USER/MODEL --dry-run

    Args:
        checkpoint: Checkpoint file or folder of any format, training run or saved step.
        repository: Name of the repository. It is created if it is missing.
        to: Format of the files: vit, which vit_jax and vit_torch read, or timm or transformers, which these libraries
            read too.
        private: Create a repository that only you can see.
        revision: Branch to upload to. It is created if it is missing. Default: main.
        message: Message of the commit.
        license: License of the weights by its name in the Hub, such as apache-2.0 or cc-by-nc-4.0. Default: none is
            stated.
        reading: How the checkpoint is opened.
        allow_lossy: Accept a format that has a slightly different activation or epsilon; the outputs change a little.
        overwrite: Replace what is in the repository, if vit push has not written it. Weights and configs of another
            checkpoint there are removed, other files stay.
        dry_run: Print the files that would be uploaded, and the model card, and upload nothing; the Hub is not asked.
    """
    there = HubRepository.of(repository, revision, login=not dry_run)
    opened = reading.open_and_report(checkpoint)
    expressed = express_for(opened, to, allow_lossy)
    plan = None if dry_run else there.plan(to, private=private, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="vit-") as scratch:
        folder = Path(scratch) / "model"
        notes = save_checkpoint(folder, expressed.checkpoint, format=to)
        for note in (*expressed.notes, *notes):
            console.say(note)
        with warnings.catch_warnings(action="ignore"):  # they were printed when it was read
            found = conversion_check.compare_with_source(opened, folder, to, expressed)
        if not found.ok:
            console.say(f"not the same model as a {to} checkpoint; nothing was uploaded")
            return 1
        from vit_cli.model_card import model_card

        card = model_card(checkpoint, opened, to, there, (*expressed.notes, *notes), found, license)
        (folder / MODEL_CARD).write_text(card)
        if plan is None:
            _print_dry_run(there, folder, card)
            return 0
        done = there.push(plan, folder, message or f"Upload {opened.config.provenance.run or checkpoint.name} ({to})")
    console.say(f"uploaded {there.address} as commit {done.commit[:12]}: {done.url}")
    return 0


def _print_dry_run(there: HubRepository, folder: Path, card: str) -> None:
    """Prints the files of a folder with their sizes, and the model card."""
    sizes = [(file.name, f"{file.stat().st_size:,}") for file in sorted(folder.iterdir())]
    console.table(f"files for {there.address}", ("file", "bytes"), sizes)
    for line in card.splitlines():
        console.say(line)
    console.say(f"dry run: nothing was uploaded to {there.address}")
