"""How `vit` starts: what it imports, from which folder, and what Ctrl-C does meanwhile."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
from cyclopts import App

from vit_cli.application import COMMANDS, build, completing, every_command
from vit_cli.benchmarks.startup import HEAVY, imported_by
from vit_cli.tests.printed import Vit

SCRIPT = Path(sys.executable).with_name("vit")
LINE = "vit: interrupted\n"


def test_help_imports_no_framework() -> None:
    """Nor NumPy, nor pydantic: `vit bench startup` measures the time that this leaves."""
    assert imported_by("--help") == ()
    assert imported_by("--version") == ()
    assert set(imported_by("schema")) <= set(HEAVY) - {"jax", "torch", "grain", "transformers", "vit_jax", "vit_torch"}


def test_version(vit: Vit) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", vit("--version"))


def test_a_summary_is_the_first_sentence_of_the_docstring(vit: Vit) -> None:
    app = build(with_summaries=False)
    shown = " ".join(vit("--help").replace("│", " ").split())
    for name, command in COMMANDS.items():
        assert app[name].help.partition("\n")[0] == command.summary
        assert f"{name} {command.summary}" in shown
        if command.parts:
            parts = " ".join(vit(name, "--help").replace("│", " ").split())
        for part, summary in command.parts.items():
            assert app[name][part].help.partition("\n")[0] == summary
            assert f"{part} {summary}" in parts


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...], vit: Vit) -> None:
    text, name = vit(*words, "--help"), " ".join(words)
    assert text.startswith(f"Usage: vit {name}")
    assert f"vit {name}" in text.partition("Example")[2], "an example"
    command = reduce(App.__getitem__, words, completing())
    arguments = [each for each in command.assemble_argument_collection(parse_docstring=True) if each.show]
    assert command.default_command is not None
    assert [each.name for each in arguments if not each.parameter.help] == [], "options without an explanation"


@pytest.mark.slow
def test_completion_knows_commands_and_fields(vit: Vit) -> None:
    for shell in ("bash", "zsh"):
        script = vit("completion", shell)
        for word in ("pretrain", "--optimizer.learning-rate", "convert", "--overwrite"):
            assert word in script or word.replace("--", "") in script, (shell, word)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a user's own modules, which must not be imported."""
    for name in ("train.py", "vit.py", "data.py", "recipes.py", "console.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    for name in ("train", "data", "steps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", [[str(SCRIPT)], [sys.executable, "-m", "vit_cli"]])
def test_modules_of_the_working_directory_are_not_imported(command: list[str], hostile: Path) -> None:
    for words, expected in (
        (["--help"], "Usage: vit"),
        (["schema"], "format_version"),
        (["explain", "digits"], "GFLOPs"),
    ):
        done = subprocess.run([*command, *words], cwd=hostile, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert done.stderr == ""


# SIGINT arrives when a module is imported.
INTERRUPTING = """
import os, signal, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = {words!r}
from vit_cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("vit_cli.application", ["--help"]),
        ("cyclopts", ["--help"]),
        ("rich.console", ["--help"]),
        ("vit_core", ["schema"]),
        ("numpy", ["schema"]),
        ("numpy._core._multiarray_umath", ["schema"]),
        ("vit_cli.commands.schema", ["schema"]),
        ("vit_core.schema", ["schema"]),
        ("vit_train.config", ["pretrain", "digits"]),
        ("torch._C", ["formats"]),
    ],
)
def test_an_interrupt_while_modules_are_imported(module: str, words: list[str]) -> None:
    program = INTERRUPTING.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


# What Python does with KeyboardInterrupt in a destructor: it prints and drops it.
SWALLOWING = """
import atexit, os, signal, sys
from vit_cli.main import main

class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

import vit_cli.commands.schema as module
before = module.schema
def schema():
    Dropping()
    return before()
module.schema = schema
sys.argv[1:] = ["schema"]
main()
"""
AT_EXIT = """
import atexit, os, signal, sys
from vit_cli.main import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv[1:] = ["schema"]
main()
"""


@pytest.mark.parametrize("program", [SWALLOWING, AT_EXIT])
def test_an_interrupt_where_python_drops_exceptions(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, LINE)


# A command that does not come to its end, whatever is raised in it.
STUBBORN = """
import os, signal, sys, time
from vit_cli import interrupts
from vit_cli.main import main

interrupts.GRACE_SECONDS = 0.2
import vit_cli.commands.schema as module
def schema():
    for _ in range({signals}):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
    time.sleep(60)
module.schema = schema
sys.argv[1:] = ["schema"]
main()
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_command_that_does_not_stop_is_ended(signals: int) -> None:
    """After a moment, or by a second Ctrl-C."""
    program = STUBBORN.format(signals=signals)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (130, LINE)


def test_sigterm_ends_it_as_any_program() -> None:
    program = "import os, signal; from vit_cli.main import main; import atexit\n" + (
        "import vit_cli.commands.schema as module\n"
        "module.schema = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "import sys; sys.argv[1:] = ['schema']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m vit_cli schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_libtpu_is_silenced_without_a_tpu(vit: Vit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a command may import jax."""
    monkeypatch.setattr("vit_core.libtpu.find_spec", lambda name: object())
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    json.loads(vit("schema"))
    devices = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    assert ("TPU_STDERR_LOG_LEVEL" in os.environ) == (not devices)


@pytest.mark.slow
def test_no_help_imports_a_framework() -> None:
    """The help of every command, in one process. The parser needs the config of a recipe, but no model."""
    program = (
        "import sys\n"
        "from vit_cli.application import every_command, run\n"
        "for words in every_command():\n"
        "    assert run([*words, '--help']) == 0\n"
        "assert run(['pretrain', 'digits', '--help']) == 0\n"
        "heavy = ('jax', 'torch', 'flax', 'grain', 'matplotlib')\n"
        "print(*[name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "\n")
