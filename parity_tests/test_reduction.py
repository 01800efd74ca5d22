"""Gradients that several devices sum in a type of choice (TrainConfig.reduce_dtype), beside those of one device."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.parallel import RUN, in_processes
from parity_tests.test_sharding import QUICK
from parity_tests.test_torchrun import TORCHRUN
from vit_core import parity
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_train.config import Mesh, TrainConfig
from vit_train.engine import Engine
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.engines.torch.sharding import prefetch
from vit_train.loop import batches_for
from vit_train.tests.small_run import LABELS, SGD, quadrants

PLAIN: TrainConfig = RUN.replace(
    dtype="float32", ema=None, accumulation=1, optimizer=SGD.replace(learning_rate=1.0, clip_norm=None)
)
"""A step of SGD changes the weights by the gradients times the first learning rate."""
MESHES = {"jax": {"both": Mesh(data=2, fsdp=2)}, "torch": {"halves": Mesh(fsdp=2), "whole": Mesh()}}
ENGINES: dict[str, Any] = {"jax": JaxEngine, "torch": TorchEngine}


def engine_of(framework: str, config: TrainConfig) -> Engine:
    """With random weights: a new head of zeros has the only gradient."""
    arrays = parity.randomized(config.model, 0)
    weights = Checkpoint.of(CheckpointConfig(model=config.model, labels=LABELS), arrays, "float32")
    return ENGINES[framework](config, weights)


def changes(engine: Engine) -> dict[str, np.ndarray]:
    """What the first step adds to each weight, in process 0."""
    before = {name: array.copy() for name, array in engine.export().items()}
    engine.train_step(batches_for(engine, quadrants())[0], 0)
    return {name: array - before[name] for name, array in engine.export().items()}


@pytest.mark.release
@pytest.mark.parametrize(
    ("framework", "command", "environment"),
    [
        ("torch", TORCHRUN, {}),
        ("jax", [], {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}),
    ],
)
def test_gradients_are_summed_in_the_type_of_choice(
    framework: str, command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Two processes of PyTorch; four devices of JAX, which share the batch by data and by fsdp."""
    one = changes(engine_of(framework, PLAIN))
    found = in_processes(tmp_path, command, environment, __file__)
    for mesh in MESHES[framework]:
        for name, expected in one.items():
            if name.endswith("qkv.bias"):
                continue  # a third of it is the keys', which is set to zero
            precise, rounded = (
                parity.difference(found[f"{mesh}, {dtype}/{name}"], expected)[1] for dtype in ("float32", "bfloat16")
            )
            assert precise <= parity.FLOAT32_BOUND, (mesh, name)
            # Each part is rounded to 8 bits, and so is each sum of them: 2**-9 of the largest, of four parts 6 times.
            assert parity.FLOAT32_BOUND < rounded < 6 * 2**-9 * 4, (mesh, name)


def test_blocks_ask_for_the_weights_of_the_next_ones() -> None:
    asked: dict[str, list[list[str]]] = {}

    class Block:
        def __init__(self, name: str) -> None:
            self.name = name

        def set_modules_to_forward_prefetch(self, blocks: "list[Block]") -> None:
            asked[self.name] = [[block.name for block in blocks]]

        def set_modules_to_backward_prefetch(self, blocks: "list[Block]") -> None:
            asked[self.name].append([block.name for block in blocks])

    blocks: Any = [Block(name) for name in "abcd"]
    prefetch(blocks, 0)
    assert not asked, "as FSDP2 does it by itself"
    prefetch(blocks, 2)
    assert asked == {"a": [["b", "c"], []], "b": [["c", "d"], ["a"]], "c": [["d"], ["b", "a"]], "d": [[], ["c", "b"]]}


def test_float64_is_summed_in_float64() -> None:
    with pytest.raises(InputError, match="reduce_dtype: float32 is for dtype float32"):
        RUN.replace(reduce_dtype="float32")


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    framework = "torch" if "TORCHELASTIC_RUN_ID" in os.environ else "jax"
    for name, mesh in MESHES[framework].items():
        for dtype in ("float32", "bfloat16"):
            engine = engine_of(framework, PLAIN.replace(mesh=mesh, reduce_dtype=dtype))
            found |= {f"{name}, {dtype}/{key}": array for key, array in changes(engine).items()}
    if engine.process == 0:
        np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main()
