"""Optimizers that see whole matrices, in two processes under torchrun, each with all of the state (DDP) or half of it
(FSDP2), which cuts the matrices: the result is that of one process; also after a change of the mesh."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from parity_tests import parallel
from parity_tests.test_sharding import BY_MATRIX
from parity_tests.test_torchrun import MESHES, TORCHRUN, of
from vit_core import parity
from vit_core.checkpoints.run_folder import saved_steps
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.run import Request, Run
from vit_train.tests.small_run import LABELS, MODEL, quadrants, run_in, save_step, train_steps

# Adafactor factors from 32 on. Of two processes, one has the queries and half of the keys.
RUN = parallel.RUN.replace(model=MODEL.replace(width=32, mlp_dim=48))
RUNS = {name: RUN.replace(optimizer=RUN.optimizer.replace(name=name, **fields)) for name, fields in BY_MATRIX.items()}
SAVED, STEPS = 2, 4


def trained(engine: TorchEngine, first: int, until: int) -> dict[str, np.ndarray]:
    """Weights, averages and statistics after some steps, in process 0."""
    train_steps(engine, batches_for(engine, quadrants()), first, until)
    return engine.export() | engine.statistics()


def assert_within(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, array in expected.items():
        assert found[name].shape == array.shape, (what, name)
        assert parity.difference(found[name], array)[1] <= parity.SHARDED_BOUND, (what, name)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Saved after two steps and continued on each mesh and in one process; on the same mesh, bit for bit."""
    folders = {(name, mesh): tmp_path / name / mesh for name in RUNS for mesh in MESHES}
    for (name, _), folder in folders.items():
        run_in(folder, RUNS[name])
    found = parallel.in_processes(tmp_path, TORCHRUN, {}, __file__)
    for name, config in RUNS.items():
        alone = TorchEngine(config)
        trained(alone, 0, SAVED)
        expected = trained(alone, SAVED, STEPS)
        for mesh in MESHES:
            what = f"{name}, {mesh}"
            assert_within(of(found, what), expected, what)
            for after in MESHES:
                continued = of(found, f"{what}, then {after}")
                assert_within(continued, expected, f"{what}, then {after}")
                for key, array in continued.items() if after == mesh else ():
                    np.testing.assert_array_equal(array, found[f"{what}/{key}"], err_msg=f"{what}, {key}")
            (step,) = saved_steps(folders[name, mesh])
            assert_within(trained(TorchEngine(config, saved=step), SAVED, STEPS), expected, f"{what}, then alone")
        held = found[f"{name}, halves, held"]
        # Parameters whose first axis is one long are in the first process, and means over rows and columns in both.
        assert 0.5 <= held < 0.6, name


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    for name, config in RUNS.items():
        for mesh in MESHES:
            engine, what = TorchEngine(config.replace(mesh=MESHES[mesh])), f"{name}, {mesh}"
            whole, held = (sum(sizes) for sizes in zip(*engine.state_bytes.values(), strict=True))
            found[f"{what}, held"] = np.asarray(held / whole)
            trained(engine, 0, SAVED)
            step = save_step(Run(folder / name / mesh, Request(config=config, labels=LABELS)), engine, SAVED)
            dist.barrier()  # the first process has written it
            engines = {what: engine}
            for after, chosen in MESHES.items():
                engines[f"{what}, then {after}"] = TorchEngine(config.replace(mesh=chosen), saved=step)
            for key, each in engines.items():
                found |= {f"{key}/{array}": x for array, x in trained(each, SAVED, STEPS).items()}
    if engine.process == 0:
        np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main()
