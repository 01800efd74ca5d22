"""`vit bench all` and `scaling`: parts, limits of time, and how costs grow."""

import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_cli.application import COMMANDS, build
from vit_cli.benchmarks import everything, loop_speed, machine, scaling
from vit_cli.benchmarks.everything import Part
from vit_cli.requirements import missing
from vit_cli.tests.printed import Printing, Vit
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError
from vit_core.variants import variant


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Part]]:
    """Parts that are Python programs in place of commands."""

    def replace(**texts: str) -> list[Part]:
        parts = [Part(name, ("-c", text)) for name, text in texts.items()]
        popen = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", lambda command, **o: popen([sys.executable, *command[3:]], **o))
        monkeypatch.setattr(everything, "parts", lambda *given: parts)
        monkeypatch.setattr(machine, "_devices", lambda framework: "cpu")
        return parts

    return replace


def test_parts_that_are_complete_are_not_measured_again(
    programs: Callable[..., list[Part]], printed: Printing, tmp_path: Path
) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    programs(good=f"print('a table'); {count}", limit="print('too slow'); exit(1)", bad="exit(2)")
    first = printed("bench", "all", "--folder", tmp_path, status=1).out
    assert "1/3 good: vit -c" in first
    assert "a table" in first
    assert "bad: ended with status 2" in first
    assert first.splitlines()[-1] == "missing: bad; the same command continues"
    assert "versions   Python" in first
    assert "a table" in (tmp_path / "good.txt").read_text()
    assert "too slow" in (tmp_path / "limit.txt").read_text()
    assert "torch" in json.loads((tmp_path / "machine.json").read_text())["versions"]
    second = printed("bench", "all", "--folder", tmp_path, status=1).out
    assert f"1/3 good: measured before, in {tmp_path / 'good.txt'}" in second
    assert (tmp_path / "count").read_text() == "x"


def test_a_part_ends_with_its_time(programs: Callable[..., list[Part]], tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    (part,) = programs(slow=child)
    assert everything.measure(part, tmp_path, 0.02, print) == "not complete after 0.02 minutes"
    assert not part.result(tmp_path).exists()


def test_results_of_two_machines_are_kept_apart(tmp_path: Path) -> None:
    here = machine.Machine(processor="A", cores=2, devices={"jax": "cpu"}, python="3.11", versions={"jax": "1"})
    everything.keep_machine(here, tmp_path)
    everything.keep_machine(here, tmp_path)
    with pytest.raises(InputError, match="another machine or with other versions"):
        everything.keep_machine(here.replace(versions={"jax": "2"}), tmp_path)


@pytest.mark.parametrize("on_accelerator", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_every_part_is_a_command(on_accelerator: bool, quick: bool, tmp_path: Path) -> None:
    peers = ("big_vision=x", "vision_transformer=y")
    parts = everything.parts(tmp_path, on_accelerator, quick, peers)
    assert len({part.name for part in parts}) == len(parts)
    app = build()
    for part in parts:
        command, bound, _ = app.parse_args(shlex.split(shlex.join(part.words)), print_error=False, exit_on_error=False)
        assert command.__module__.startswith(("vit_cli.commands.bench", "vit_cli.commands.parity"))
        if "peer" in inspect.signature(command).parameters:
            assert bound.arguments["peer"] == peers
        if "json" in inspect.signature(command).parameters:
            assert bound.arguments["json"].parent == tmp_path
        if command.__name__ == "train":  # whose steps have to be more than the warm-up
            options = bound.arguments
            loop_speed.config_of("mu/16", 4, "float32", options["steps"], options["rounds"], threads=1)


def test_everything_is_measured() -> None:
    """Each command of `vit bench` is a part, on an accelerator also at 512 and 1,024 pixels, and B/16 on CPUs."""
    (group,) = (command for command in COMMANDS.values() if command.name == "bench")
    names = {False: {"model-S16-float32", "model-B16-float32", "model-B16-bfloat16"}}
    names[True] = {"model-B16-512-bfloat16-compiled", "model-B16-1024-bfloat16-compiled", "model-L16-bfloat16"}
    for on_accelerator in (False, True):
        parts = everything.parts(Path("x"), on_accelerator, False)
        of_bench = {part.words[1] for part in parts if part.words[0] == "bench"}
        optional = {"sources": ("tensorflow_datasets", "array_record", "pyarrow"), "program": ("libtpu",)}
        assert of_bench == set(group.parts) - {"all"} - {name for name in optional if missing(optional[name])}
        assert names[on_accelerator] < {part.name for part in parts}


def test_the_checkpoint_of_the_proofs_is_written_once(tmp_path: Path) -> None:
    everything.keep_checkpoint(tmp_path, quick=True)
    (part,) = (part for part in everything.parts(tmp_path, False, True) if part.name == "parity-float64")
    assert open_checkpoint(Path(part.words[1])).config.model == variant("mu/16", 224, 1000)
    everything.keep_checkpoint(tmp_path, quick=False)
    assert open_checkpoint(Path(part.words[1])).config.model == variant("mu/16", 224, 1000)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [({"jax": "cpu", "torch": "cpu"}, False), ({"jax": "gpu, 1 x H100"}, True), ({"jax": "none that works"}, False)],
)
def test_whether_there_is_an_accelerator(devices: dict[str, str], expected: bool) -> None:
    found = machine.Machine(processor="", cores=1, devices=devices, python="", versions={})
    assert found.has_accelerator == expected


def test_wrong_minutes_are_refused(refused: Vit) -> None:
    assert "--minutes 0: expected more than 0" in refused("bench", "all", "--minutes", "0")


def test_one_thing_is_doubled() -> None:
    """FLOPs of a block: 24 n d^2 + 4 n^2 d for n tokens of width d, when its hidden layer is 4 d wide."""
    sizes = scaling.doubled()
    exponents = scaling.exponents_of_flops()
    assert exponents["batch"] == 1
    assert 0.95 < exponents["depth"] < 1  # the patches and the head are not doubled
    assert 1.8 < exponents["width"] < 2
    assert 1 < exponents["tokens"] < 1.2
    assert sizes["tokens"].model.tokens == 2 * scaling.BASE.model.tokens - 1  # one class token
    for name, config in sizes.items():
        assert config.preprocessing.image_size == config.model.image_size, name


def test_exponents_are_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Step:
        def __init__(self, config: object) -> None:
            self.double = config is not scaling.BASE

        def seconds(self) -> float:
            return 8.0 if self.double else 2.0

    monkeypatch.setattr(scaling._Step, "of", lambda framework, config: Step(config))
    assert scaling.exponents("torch", 3) == dict.fromkeys(scaling.doubled(), 2.0)


@pytest.mark.release  # 2.5 minutes of a core
def test_scaling_is_measured(printed: Printing) -> None:
    lines = printed("bench", "scaling", "--rounds", 1).out.splitlines()
    rows = [line.split() for line in lines]
    (batch,) = [float(row[1]) for row in rows if row[:1] == ["PyTorch"] and len(row) == 5]
    assert 0.3 < batch < 2
    assert [" ".join(row[:-2]) for row in rows if row[-1:] == ["ms"]] == ["JAX, scanned", "JAX, unrolled", "PyTorch"]
