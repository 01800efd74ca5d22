"""`vit bench model`: what it computes from its measurements, what it keeps, and what it does with missing libraries."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vit_jax
from vit_cli.benchmarks.implementations import Implementation, Setting, Turn, implementations
from vit_cli.benchmarks.jax_peers import vision_transformer
from vit_cli.benchmarks.machine import Machine, available_cores, this_machine
from vit_cli.benchmarks.model_speed import Measured, Part, Report, Timing, finished, measure, open_report, write_report
from vit_cli.benchmarks.torch_runner import BUILDERS
from vit_cli.tests.printed import Printing, Vit
from vit_core.errors import InputError

SETTING = Setting(variant="mu/16@32", batch_size=4, dtype="float32", compiled=False, threads=1)
MACHINE = Machine(processor="x", cores=1, devices={"torch": "cpu"}, python="3", versions={"torch": "1"})


def measured(name: str, *turns: float) -> Measured:
    timing = Timing(first=9.0, turns=turns, host=turns, processor=turns)
    return Measured(
        implementation=name, framework="torch", forward=timing, train=timing, memory_bytes=1, memory_on_device=False
    )


def part(*all_measured: Measured, **missing: dict[str, str]) -> Part:
    fields = {"absent": {}, "failed": {}} | missing
    return Part(setting=SETTING, peak=1e9, interleaved=True, measured=all_measured, **fields)


def test_speeds_are_of_medians_and_ratios_of_rounds() -> None:
    ours, timm, slow = measured("vit_torch", 2, 1, 8), measured("timm", 3, 2, 4), measured("transformers", 5, 5, 5)
    found = part(ours, timm, slow)
    assert found.images_per_second(ours, "forward") == 4 / 2
    # Each round beside the same round: 3/2, 2/1, 4/8.
    assert found.times_fastest_peer(ours, "train") == (1.5, 1.5, "timm")
    assert part(ours).times_fastest_peer(ours, "train") is None
    assert (ours.train.compiling, ours.train.replace(first=1.5).compiling) == (9 - 2, 0)


@pytest.mark.parametrize("name", ["vit_torch", "timm"])
def test_utilisation_is_that_of_counted_flops(name: str) -> None:
    """FLOPs of forward and backward pass by PyTorch's counter; attention spelled out, for which it has a formula."""
    model = BUILDERS[name](SETTING.model)
    images_BCHW = torch.zeros(1, 3, 32, 32)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
    ):
        model(images_BCHW).sum().backward()
    one = measured(name, 0.5)
    # The first layer has no gradient of its input to compute; the counter has none for it either.
    first = 2 * 3 * 16 * 16 * 32 * 4
    flops = part(one).utilisation(one, "train") * 1e9 / (4 / 0.5)
    assert flops == counter.get_total_flops() + first


def test_a_report_is_read_again_on_the_same_machine_only(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    report = Report(machine=MACHINE, parts=(part(measured("timm", 1.0)),))
    write_report(file, report)
    assert open_report(file, MACHINE) == report
    with pytest.raises(InputError, match="measured on another machine or with other versions"):
        open_report(file, MACHINE.replace(versions={"torch": "2"}))
    file.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        open_report(file, MACHINE)


def test_a_part_is_finished_once_all_that_can_be_measured_is() -> None:
    present, absent = (
        Implementation(name, "torch", packages) for name, packages in (("a", ()), ("b", ("absent_package",)))
    )
    missing = {"absent": {"b": "not installed: absent_package"}, "failed": {"c": "ValueError: no"}}
    report = Report(machine=MACHINE, parts=(part(measured("a", 1.0, 1.0), **missing),))
    assert finished(report, SETTING, [present, absent], rounds=2) is report.parts[0]
    fails = Implementation("c", "torch", ())
    assert finished(report, SETTING, [fails], rounds=2) is report.parts[0], "it would fail again"
    assert finished(report, SETTING, [present], rounds=3) is None, "more rounds are wanted"
    assert finished(report, SETTING.replace(batch_size=5), [present], rounds=2) is None
    assert finished(report, SETTING, [Implementation("b", "torch", ())], rounds=2) is None, "it is installed now"


def test_implementations_take_turns_and_one_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str, int]] = []

    class FakeWorker:
        def __init__(self, implementation: Implementation, setting: Setting) -> None:
            self.implementation = implementation

        def run(self, kind: Any, number: int) -> Turn:
            from vit_cli.benchmarks.workers import Failed

            calls.append((self.implementation.name, kind, number))
            if self.implementation.name == "bad" and kind == "train":
                raise Failed("out of memory")
            return Turn(0.2, 0.1, 0.2)

        def peak(self) -> float:
            return {"a": 1.0, "b": 3.0, "bad": 2.0}[self.implementation.name]

        def memory(self) -> Any:
            from vit_cli.benchmarks.workers import Memory

            return Memory(7, on_device=True)

        def close(self) -> None:
            calls.append((self.implementation.name, "closed", 0))

    monkeypatch.setattr("vit_cli.benchmarks.model_speed.Worker", FakeWorker)
    wanted = [Implementation(name, "torch", ()) for name in ("a", "bad", "b")]
    found = measure(SETTING, wanted, rounds=2, together=True)
    assert found.failed == {"bad": "out of memory"}
    assert [one.implementation for one in found.measured] == ["a", "b"]
    assert found.peak == 3.0
    # Once that does not count, then as often as half a second needs; each round begins with another one.
    turns = [(name, number) for name, kind, number in calls if kind == "train"]
    a, b = [("a", 1), ("a", 3)], [("b", 1), ("b", 3)]
    assert turns == [("a", 1), ("bad", 1), ("b", 1), *a, *b, *b, *a]
    assert [name for name, kind, _ in calls if kind == "closed"] == ["b", "bad", "a"]


def test_wrong_words_are_refused_before_anything_is_measured(refused: Vit, tmp_path: Path) -> None:
    assert "unknown implementation 'tim'; did you mean 'timm'?" in refused("bench", "model", "--only", "tim")
    assert "expected an image size after the @" in refused("bench", "model", "--variant", "S/16@big")
    assert "expected NAME=PATH" in refused("bench", "model", "--peer", "timm=x")
    assert "has no folder big_vision" in refused("bench", "model", "--peer", f"big_vision={tmp_path}")
    said = refused("bench", "model", "--peer", f"vision_transformer={tmp_path}")
    assert "has no folder vit_jax; give a checkout of google-research/vision_transformer" in said
    assert "--rounds 0: expected 1 or more" in refused("bench", "model", "--rounds", "0")
    assert "expected one of model" in refused("bench")


def test_a_peer_with_the_name_of_a_twin_is_imported_beside_it(tmp_path: Path) -> None:
    """vision_transformer's package is called vit_jax too, and one of its modules imports another from there. The model
    is replaced by one that shows its arguments; `factor` comes from the other module."""
    (tmp_path / "vit_jax").mkdir()
    (tmp_path / "vit_jax" / "models_resnet.py").write_text("factor = 3.0\n")
    (tmp_path / "vit_jax" / "models_vit.py").write_text(
        "from typing import Any\n"
        "import flax.linen as nn\n"
        "from vit_jax import models_resnet\n"
        "class VisionTransformer(nn.Module):\n"
        "    num_classes: int\n"
        "    patches: Any\n"
        "    hidden_size: int\n"
        "    transformer: Any\n"
        "    def __call__(self, x, *, train):\n"
        "        t = dict(self.transformer)\n"
        "        shown = [self.num_classes, *self.patches.size, self.hidden_size, t['num_layers'], t['num_heads']]\n"
        "        return models_resnet.factor * x.sum() + 0 * train, shown, t['mlp_dim'], t['dropout_rate']\n"
    )
    apply, initial = vision_transformer(str(tmp_path), SETTING)
    total, shown, mlp_dim, dropout = apply(initial(), jax.numpy.ones((1, 2, 2, 1)))
    config = SETTING.model
    assert (total, mlp_dim, dropout) == (12.0, config.mlp_dim, 0)
    assert shown == [1000, 16, 16, config.width, config.depth, config.heads]
    assert sys.modules["vit_jax"] is vit_jax
    (tmp_path / "vit_jax" / "models_resnet.py").write_text("import no_such_package\n")
    with pytest.raises(InputError, match=r"--peer vision_transformer=.* cannot be imported .*no_such_package"):
        vision_transformer(str(tmp_path), SETTING)
    assert sys.modules["vit_jax"] is vit_jax


def test_a_peer_is_left_out_where_it_computes_something_else() -> None:
    (peer,) = (one for one in implementations({"vision_transformer": "x"}) if one.name == "vision_transformer")
    assert peer.why_absent(SETTING) is None
    assert peer.why_absent(SETTING.replace(dtype="bfloat16")) == "its model computes in float32 only"
    assert peer.why_absent(SETTING.replace(variant="dinov3-S/16")) == "not measured with rotary positions"


def test_wrong_words_are_refused_before_anything_is_compiled(refused: Vit, tmp_path: Path) -> None:
    assert "unknown topology 'v9:2x2'" in refused("bench", "program", "--topology", "v9:2x2")
    said = refused("bench", "program", "--topology", "local")
    assert "unknown topology 'local'; expected the sides of a slice in chips: v4:4x4x4, v5e:16x16" in said
    said = refused("plan", "digits", "--topology", "here")
    assert "unknown topology 'here'; expected local, or the sides of a slice" in said
    assert "--batch-size 6: expected a multiple of the 4 chips of v5e:2x2" in refused(
        "bench", "program", "--topology", "v5e:2x2", "--batch-size", 6
    )
    assert "expected an image size after the @" in refused("bench", "program", "--variant", "S/16@big")
    assert "has no folder big_vision" in refused("bench", "program", "--peer", f"big_vision={tmp_path}")


def test_programs_are_shown_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_cli.benchmarks.programs import Programs
    from vit_cli.reports.programs import print_programs
    from vit_train.planning.compilation import Compiled, Memory
    from vit_train.planning.topologies import FAMILIES
    from vit_train.planning.work import Work

    memory = Memory(arguments=2**30, outputs=0, aliased=0, temporaries=2**30, program=0, peak=0)
    flops = SETTING.flops["train"] * SETTING.batch_size / 2
    work = Work(flops=2 * flops, kernels=0, moved=2**31, received=2**20, hidden=2**18, cycles=2_500_000)
    fits, too_large = Compiled(seconds=1.0, memory=memory, work=work), Compiled(seconds=1.0, refused=2**40)
    lines: list[tuple[str, ...]] = []
    monkeypatch.setattr("vit_cli.reports.programs.table", lambda title, columns, rows: lines.extend(rows))
    found = Programs(
        topology="v5e:1x2",
        devices=2,
        fsdp=1,
        setting=SETTING,
        versions={},
        compiled={"vit pretrain": fits, "plain": too_large},
        absent={"big_vision": "no"},
    )
    print_programs(found, FAMILIES["v5e"].chip)
    assert lines[0][2:] == ("50.0%", "2.00 GiB", "1.00 MiB", "25%", "2.5", "2.00 GiB")
    assert lines[1] == ("plain", "-", "-", "-", "-", "-", "does not fit", "1,024.00 GiB")


@pytest.mark.slow
def test_the_machine_says_what_it_is() -> None:
    machine = this_machine()
    assert machine.cores == available_cores()
    assert machine.versions["torch"] == torch.__version__.partition("+")[0]
    assert set(machine.devices) == {"jax", "torch"}


@pytest.mark.release
def test_both_twins_beside_their_peers(printed: Printing, tmp_path: Path) -> None:
    """Real processes. What is measured once is not measured again; a broken peer is named."""
    (tmp_path / "big_vision" / "models").mkdir(parents=True)
    (tmp_path / "big_vision" / "models" / "vit.py").write_text("raise ImportError('no such thing')")
    file, chart = tmp_path / "speed.json", tmp_path / "speed.png"
    names = ("vit_torch", "timm", "vit_jax", "big_vision")
    words = ["bench", "model", "--variant", "mu/16@32", "--rounds", 2, "--threads", 1, "--json", file, "--png", chart]
    words += [word for name in names for word in ("--only", name)] + ["--peer", f"big_vision={tmp_path}"]
    text = printed(*words).out
    assert "skipped big_vision" in text
    assert "no such thing" in text
    assert "vit_torch: forward" in text
    assert chart.read_bytes().startswith(b"\x89PNG")
    (saved,) = json.loads(file.read_text())["parts"]
    assert [one["implementation"] for one in saved["measured"]] == list(names[:3])
    for one in saved["measured"]:
        assert len(one["train"]["turns"]) == 2
        assert one["train"]["first"] > statistics.median(one["train"]["turns"]) > 0
        assert one["memory_bytes"] > 2**26
    assert "measured before" in printed(*words).out


def test_every_implementation_is_the_network_of_the_setting() -> None:
    """The number of parameters by the peers' own modules. vit-pytorch's has norms at its patches, and lacks biases."""
    config = SETTING.model
    count = {name: sum(p.numel() for p in build(config).parameters()) for name, build in BUILDERS.items()}
    assert count["vit_torch"] == count["timm"] == count["transformers"]
    patch, width = 3 * 16 * 16, config.width
    assert count["vit-pytorch"] == count["timm"] + 2 * (patch + width) - 3 * width * config.depth
    assert [c.name for c in implementations({}) if c.framework == "torch"] == list(BUILDERS)
