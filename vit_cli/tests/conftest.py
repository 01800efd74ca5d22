"""The command line as a user has it, run in this process: starting a new one for each command costs seconds."""

from collections.abc import Iterator

import pytest

from vit_cli.application import run
from vit_cli.tests.printed import Printed, Printing, Vit
from vit_cli.tests.small_recipe import SMALL


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Iterator[Printing]:
    """Runs a command and checks its exit status; returns what it printed."""

    def call(*words: object, status: int = 0) -> Printed:
        capfd.readouterr()
        code = run(list(map(str, words)))
        out, err = capfd.readouterr()
        assert code == status, err or out
        if status == 2:
            assert err.startswith("vit: error: ")
            assert err.count("\n") == 1, err
        return Printed(out, err)

    import jax

    before = jax.config.jax_enable_x64
    yield call
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def vit(printed: Printing) -> Vit:
    """Runs a command and checks its exit status; returns what it printed, or the one line for bad input."""

    def call(*words: object, status: int = 0) -> str:
        result = printed(*words, status=status)
        return result.err if status == 2 else result.out

    return call


@pytest.fixture
def refused(printed: Printing) -> Vit:
    """Runs a command with bad input; returns the one line that it prints."""
    return lambda *words: printed(*words, status=2).err


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a small recipe, with images of four classes."""
    from vit_train.tests.small_run import folder_of_images

    folder = tmp_path_factory.mktemp("recipe")
    (folder / "small.py").write_text(SMALL.format(folder=str(folder_of_images(folder / "images"))))
    return str(folder / "small.py")
