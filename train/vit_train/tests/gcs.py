"""A stand-in for Google Cloud Storage and a run in it, for the tests of runs in stores."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_core.storage import location
from vit_core.storage.tests.fake_gcs import Store
from vit_core.storage.tests.gcs_server import gcs_server, store
from vit_train.tests.small_run import folder_of_images

__all__ = ["OUT", "gcs_server", "kill_at", "recipe", "start", "store", "wait_until_finished"]


RECIPE = """
from vit_train.config import Data
from vit_train.tests.small_run import CONFIG

def pretrain():
    return CONFIG.replace(
        steps=24, save_every=5, evaluate_every=12, log_every=1, fingerprints=True, tensorboard=True, threads=1,
        data=Data(name={folder!r}),
    )
"""
OUT = location("gs://bucket/run")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The file of a recipe for the runs in the store."""
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    return path


def start(recipe: Path, out: object, *words: str) -> subprocess.Popen[str]:
    """Starts `vit pretrain` as a process; what it prints is appended to a log beside the recipe."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vit_cli", "pretrain", str(recipe), "--out", str(out), *words]
    with open(recipe.parent / "log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def wait_until_finished(process: subprocess.Popen[str], recipe: Path) -> None:
    """Waits for a process that has to end with status 0."""
    assert process.wait(timeout=300) == 0, (recipe.parent / "log").read_text()


def kill_at(store: Store, verb: str, pattern: str, recipe: Path, *words: str) -> None:
    """Starts the run in the store, and kills it when it is about to make a request that matches; the store does not
    answer that request."""
    process = start(recipe, OUT, *words)

    def before(requested: str, name: str) -> None:
        if process.poll() is not None:
            raise ConnectionError("the client is gone")
        if requested == verb and re.search(pattern, name):
            process.kill()
            process.wait()
            raise ConnectionError("killed")

    store.before = before
    assert process.wait(timeout=300) == -9, (pattern, (recipe.parent / "log").read_text())
    time.sleep(0.2)  # for requests that were under way
    store.before = lambda verb, name: None
