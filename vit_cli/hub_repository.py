"""A model's repository in the Hugging Face Hub as a target: checks of what may be replaced, and the upload in one
commit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from vit_core.checkpoints.overwriting import check_target
from vit_core.errors import InputError
from vit_core.storage.hub import HubPath, bars_in_terminals_only, hub_errors, require_hub

MODEL_CARD = "README.md"
WRITTEN_BY_US = "<!-- written by vit push -->"
"""A line that marks the model cards that may be replaced."""


@dataclass(frozen=True)
class Plan:
    """The changes that a push makes in a repository."""

    parent: str | None
    """The parent of the new commit, which is checked again by the push; None: the repository is new."""
    new_branch: bool
    removed: tuple[str, ...]
    """Files of the checkpoint that is replaced."""
    private: bool


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    commit: str
    url: str
    """The model's page."""


@dataclass(frozen=True)
class HubRepository:
    """A branch of a model's repository."""

    name: str
    """USER/MODEL."""
    revision: str | None
    """The branch; None: the default branch."""

    @classmethod
    def of(cls, name: str, revision: str | None, login: bool = True) -> Self:
        """The repository with a name. Raises InputError for an invalid name, and if no user is logged in. login: False
        checks only that the name has two parts, which needs no package."""
        if not login:
            if name.removeprefix("hf://").count("/") != 1:
                raise InputError(f"{name}: expected USER/MODEL")
            return cls(name.removeprefix("hf://"), revision)
        require_hub("vit push")
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        name = name.removeprefix("hf://")
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise InputError(f"{name}: expected USER/MODEL ({error})") from None
        if "/" not in name:
            raise InputError(f"{name}: expected USER/MODEL: your name in the Hub, or an organization's, comes first")
        if get_token() is None:
            raise InputError("vit push: you are not logged in to the Hub; log in with hf auth login, or set HF_TOKEN")
        return cls(name, revision)

    @property
    def address(self) -> str:
        """The address from which it is read: hf://USER/MODEL[@REVISION]."""
        return f"hf://{self.name}" + (f"@{quote(self.revision, safe='')}" if self.revision else "")

    def plan(self, format: str, *, private: bool, overwrite: bool) -> Plan:
        """The changes that a push would make. Raises InputError if the repository has files that may not be replaced,
        and StorageError if the Hub cannot be reached."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        with hub_errors(self.address):
            try:
                info = HfApi().model_info(self.name)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return Plan(None, self.revision is not None, (), private)
            if private and not info.private:
                raise InputError(
                    f"{self.name}: exists and is public; make it private on its page, or leave out --private"
                )
            new_branch = False
            if self.revision is not None:
                try:
                    HfApi().model_info(self.name, revision=self.revision)
                except RevisionNotFoundError:
                    new_branch = True
        # A new branch begins with the files of the default branch.
        there = HubPath.parse(f"hf://{self.name}" if new_branch else self.address)
        return Plan(there.snapshot.commit, new_branch, _replaced(there, format, overwrite), private)

    def push(self, plan: Plan, folder: Path, message: str) -> Pushed:
        """Uploads all files of a folder as one commit. Raises StorageError if that fails; then no file is uploaded."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi()
        with hub_errors(self.address), bars_in_terminals_only():
            if plan.parent is None:
                api.create_repo(self.name, private=plan.private or None, exist_ok=True)
            if plan.new_branch:
                api.create_branch(self.name, branch=str(self.revision), revision=plan.parent)
            added = {file.name: file for file in sorted(folder.iterdir())}
            commit = api.create_commit(
                self.name,
                [
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in added.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in plan.removed if name not in added),
                ],
                commit_message=message,
                revision=self.revision,
                parent_commit=plan.parent,
            )
        return Pushed(commit.oid, f"{api.endpoint}/{self.name}" + (f"/tree/{self.revision}" if self.revision else ""))


def _replaced(there: HubPath, format: str, overwrite: bool) -> tuple[str, ...]:
    """The files of the checkpoint in a repository. Raises InputError if they, or the model card, may not be
    replaced."""
    replaced = check_target(there, format, overwrite)
    card = there / MODEL_CARD
    if not overwrite and card.is_file() and WRITTEN_BY_US not in card.read_text():
        raise InputError(f"{card}: not written by vit push; choose another name, or add --overwrite, which replaces it")
    return tuple(file.name for file in replaced)
