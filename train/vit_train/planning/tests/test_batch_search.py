"""The search for the largest batch, on simulated devices with a given memory."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vit_cli.reports.plan import verdict
from vit_train.config import Mesh, TrainConfig
from vit_train.planning.batch_search import find_largest_batch, meshes
from vit_train.planning.compilation import Compiled, Memory
from vit_train.planning.plan import Plan, Target
from vit_train.planning.tests.test_plan import SMALL
from vit_train.planning.topologies import Chip
from vit_train.tests.fixtures import Vit


def imagined(config: TrainConfig, devices: int = 8, memory: int = 1000) -> Plan:
    """A plan that needs 100 bytes, and by remat 40, 20 or 10 for each example, on devices of `memory` bytes."""
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
    """64 examples on a device need 740 bytes with full rematerialization; with less, they do not fit."""
    found = find_largest_batch(SMALL, 8, imagined)
    assert found.best is not None
    assert (found.best.config.batch_size, found.best.config.remat) == (64 * 8, "full")
    assert str(found.best.config.mesh) == "data 2 x fsdp 4 x tensor 1", "the recipe's own comes first"
    assert max(each.config.batch_size for each in found.tried if each.fits) == 64 * 8
    assert len(found.tried) < 15


def test_of_equal_batches_the_one_with_less_recomputation() -> None:
    """Without rematerialization 16 examples fit into 1040 bytes of a device; with rematerialization at most 32."""
    found = find_largest_batch(
        SMALL, 8, lambda config: imagined(config, memory=1040 if config.remat != "full" else 400)
    )
    assert found.best is not None
    assert (found.best.config.batch_size, found.best.config.remat) == (16 * 8, "none")


def test_nothing_fits() -> None:
    found = find_largest_batch(SMALL, 8, lambda config: imagined(config, memory=105))
    assert found.best is None
    assert {each.config.remat for each in found.tried} == {"full"}


def test_every_mesh_that_is_tried_is_possible() -> None:
    """The recipe's own is first; all divide the devices and the model."""
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
    (tmp_path / "tiny.py").write_text(
        "from vit_train.tests.small_run import CONFIG\ndef pretrain():\n    return CONFIG\n"
    )
    monkeypatch.setattr("vit_cli.plan_run.plan", lambda config, target: imagined(config, devices=1, memory=200))
    out = vit("plan", tmp_path / "tiny.py", "--fit")
    assert re.search(r"batch 8: fits, 180 B of 200 B on each device \(90.0%\)", out)
    assert "--batch-size 8 --remat full --mesh.data 1 --mesh.fsdp 1 --mesh.tensor 1\n" in out
    assert out.endswith("(the recipe's learning rate and steps are for batches of 16)\n")
