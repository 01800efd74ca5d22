"""The search for the largest batch, on devices whose memory is made up."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from train.compiled import Compiled, Memory
from train.config import Mesh, TrainConfig
from train.fit import fit, meshes
from train.plan import Plan, Target
from train.plan_report import verdict
from train.tests.conftest import Vit
from train.tests.test_plan import SMALL
from train.topologies import Chip


def imagined(config: TrainConfig, devices: int = 8, memory: int = 1000) -> Plan:
    """A plan of a device of 1000 bytes whose memory is 100, and for each example by remat 40, 20 or 10."""
    mesh = config.mesh.over(devices, config.model)
    each = {"none": 40, "dots": 20, "full": 10}[config.remat] * config.batch_size // (mesh.data * mesh.fsdp)
    found = Memory(arguments=100, outputs=100, aliased=100, temporaries=each, program=0, peak=100 + each)
    return Plan(
        config=config.replace(mesh=mesh),
        target=Target("imagined", Chip("imagined", memory), [None] * devices),  # type: ignore[list-item]
        shares={"parameters": 100, "batch": 0},
        gradients=0,
        compiled=Compiled(seconds=1.0, memory=found),
        cached=False,
        xla_flops=None,
    )


def test_the_largest_batch_that_fits() -> None:
    """64 on a device take 740 bytes with full rematerialisation; with less, too much."""
    found = fit(SMALL, 8, imagined)
    assert found.best is not None
    assert (found.best.config.batch_size, found.best.config.remat) == (64 * 8, "full")
    assert str(found.best.config.mesh) == "data 2 x fsdp 4 x tensor 1", "the recipe's own comes first"
    assert max(each.config.batch_size for each in found.tried if each.fits) == 64 * 8
    assert len(found.tried) < 15


def test_of_equal_batches_the_one_that_computes_less_again() -> None:
    """In 1040 bytes 16 on a device fit with no rematerialisation, and with half as much no more than 32."""
    found = fit(SMALL, 8, lambda config: imagined(config, memory=1040 if config.remat != "full" else 400))
    assert found.best is not None
    assert (found.best.config.batch_size, found.best.config.remat) == (16 * 8, "none")


def test_nothing_fits() -> None:
    found = fit(SMALL, 8, lambda config: imagined(config, memory=105))
    assert found.best is None
    assert {each.config.remat for each in found.tried} == {"full"}


def test_meshes_that_are_tried_can_be() -> None:
    """The recipe's own first; none that does not divide the devices or the model."""
    tried = [str(mesh) for mesh in meshes(SMALL, 16)]
    assert tried[0] == "data 4 x fsdp 4 x tensor 1"
    assert "data 16 x fsdp 1 x tensor 1" in tried
    assert len(set(tried)) == len(tried)
    assert not any("fsdp 64" in mesh for mesh in tried)


def test_an_overfull_plan_says_what_to_change() -> None:
    full = imagined(SMALL.replace(mesh=Mesh(data=2, fsdp=4), batch_size=512, compute_dtype=None))
    said = verdict(full)
    assert "does not fit, 1.62 KiB too much on each device of 1,000 B" in said
    for option in ("--compute-dtype bfloat16", "--remat dots", "--accumulation 2", "--batch-size 256"):
        assert option in said
    refused = replace(full, compiled=Compiled(seconds=1.0, refused=3000))
    assert "does not fit, 1.95 KiB too much" in verdict(refused)


def test_the_command_searches(vit: Vit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text("from train.tests.small import CONFIG\ndef pretrain():\n    return CONFIG\n")
    monkeypatch.setattr("train.plan_report.plan", lambda config, target: imagined(config, devices=1, memory=200))
    out = vit("plan", tmp_path / "tiny.py", "--fit")
    assert re.search(r"batch 8: fits, 180 B of 200 B on each device \(90.0%\)", out)
    assert "--batch-size 8 --remat full --mesh.data 1 --mesh.fsdp 1 --mesh.tensor 1\n" in out
    assert out.endswith("(the recipe's learning rate and steps are for batches of 16)\n")
