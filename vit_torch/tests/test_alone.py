"""The PyTorch twin without JAX, and what only it does: modes, devices of masks, deployment."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vit_torch
from vit_core import (
    Checkpoint,
    CheckpointConfig,
    InputError,
    Provenance,
    ViTConfig,
    open_checkpoint,
    parity,
    save_checkpoint,
)
from vit_core.preprocess import Preprocessing
from vit_torch import stacking

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_dim=16, num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    save_checkpoint(tmp_path / "checkpoint", Checkpoint.of(CheckpointConfig(model=MODEL), arrays))
    return tmp_path / "checkpoint"


@pytest.mark.slow
def test_loads_where_jax_cannot_be_imported(folder: Path) -> None:
    """And imports pydantic, schemas and formats only when it loads: `vit bench startup` measures the import."""
    program = f"""
import sys
class Absent:
    def find_spec(name, *_):
        if name.split(".")[0] in "jax jaxlib flax optax tensorflow_datasets grain".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
import torch, vit_torch
print("pydantic" in sys.modules)
model = vit_torch.load({str(folder)!r}, image_size=16)
vit_torch.save(model, {str(folder / "again")!r}, dtype="bfloat16")
print(list(model(torch.zeros(2, 3, 16, 16)).shape), vit_torch.load({str(folder / "again")!r}).head.weight.dtype)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n[2, 3] torch.bfloat16\n", done.stderr


def test_save_and_load_are_inverse(folder: Path, tmp_path: Path) -> None:
    model = vit_torch.load(folder)
    vit_torch.save(model, tmp_path / "again")
    first, again = open_checkpoint(folder), open_checkpoint(tmp_path / "again")
    assert first.config == again.config
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize("dtype", [torch.float64, "bfloat16", "float16"])
def test_dtype_is_of_parameters_and_output(folder: Path, dtype: torch.dtype | str) -> None:
    model = vit_torch.load(folder, dtype=dtype)
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert model(torch.zeros(1, 3, 8, 8)).dtype == expected


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 2**-6)])
def test_resized_at_load_or_at_run_time_is_the_same(folder: Path, dtype: str, bound: float) -> None:
    # Both resample from the same type and round once: the bounds are the forward pass's own, four ulps in bfloat16.
    x_BCHW = torch.rand(2, 3, 16, 12, dtype=torch.float64)
    how = {"dtype": dtype, "position_embedding_method": "bicubic"}
    at_load = vit_torch.load(folder, image_size=(16, 12), **how)(x_BCHW)
    at_run_time = vit_torch.load(folder, **how)(x_BCHW, interpolate=True)
    assert (at_load - at_run_time).abs().max() <= bound * at_load.abs().max()


def test_what_the_folder_said_is_saved_again(tmp_path: Path) -> None:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    told = CheckpointConfig(
        model=MODEL,
        preprocessing=Preprocessing(image_size=8, mean=(0.1, 0.2, 0.3)),
        labels=("a", "b", "c"),
        provenance=Provenance(run="run", step=7),
    )
    save_checkpoint(tmp_path / "first", Checkpoint.of(told, arrays))
    vit_torch.save(vit_torch.load(tmp_path / "first", image_size=16), tmp_path / "second")
    again = open_checkpoint(tmp_path / "second").config
    assert (again.labels, again.provenance.step) == (told.labels, 7)
    assert again.preprocessing == Preprocessing(image_size=16, mean=(0.1, 0.2, 0.3))
    assert again.provenance.position_resampling[0].target == (4, 4)
    vit_torch.save(vit_torch.load(tmp_path / "second"), tmp_path / "third", labels=("x", "y", "z"))
    assert open_checkpoint(tmp_path / "third").config == again.replace(labels=("x", "y", "z"))


def test_unknown_kernels_and_masks_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown attention 'fuse'; did you mean 'fused'"):
        vit_torch.from_seed(MODEL, 0, attention="fuse")
    with pytest.raises(InputError, match=r"unknown remat 'Dots'; did you mean 'dots'"):
        vit_torch.from_seed(MODEL, 0, remat="Dots")
    with pytest.raises(InputError, match=r"unknown mask 'drop_path'; did you mean 'drop_path"):
        vit_torch.from_seed(MODEL, 0)(torch.zeros(1, 3, 8, 8), {"drop_path": torch.ones(2, 1)})


def test_training_mode_draws_masks() -> None:
    config = MODEL.replace(stochastic_depth=0.5, dropout=0.1)
    model = vit_torch.from_seed(config, 0)
    torch.nn.init.normal_(model.head.weight)
    x_BCHW = torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    first, second = model.train()(x_BCHW), model(x_BCHW)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(x_BCHW), first)
    assert torch.equal(model.eval()(x_BCHW), model(x_BCHW))
    drawn = vit_torch.draw_masks(config, 4, torch.Generator().manual_seed(2))
    assert torch.equal(model.train()(x_BCHW, drawn), model.eval()(x_BCHW, drawn))
    assert set(np.unique(drawn["drop_path1"][1])) == {0.0, 2.0}


class Computed(TorchDispatchMode):
    """Counts products with weights and attention calls."""

    def __init__(self) -> None:
        super().__init__()
        self.dots = self.attention = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.dots += op in stacking.DOTS
        self.attention += "scaled_dot_product" in str(op) and "backward" not in str(op)
        return op(*args, **(kwargs or {}))


def test_rematerialisation_computes_again_what_it_says(folder: Path) -> None:
    computed = {}
    for remat in ("none", "dots", "full"):
        with Computed() as computed[remat]:
            vit_torch.load(folder, remat=remat)(torch.zeros(2, 3, 8, 8)).sum().backward()
    assert computed["none"].attention == MODEL.depth
    assert computed["dots"].attention == computed["full"].attention == 2 * MODEL.depth
    assert computed["dots"].dots == computed["none"].dots
    # qkv, proj and fc1 of each block; nothing of the backward pass needs what fc2 gave.
    assert computed["full"].dots == computed["none"].dots + 3 * MODEL.depth


def test_drop_rates_are_the_configs() -> None:
    config = MODEL.replace(depth=3, stochastic_depth=0.4, dropout=0.25, attention_dropout=0.1)
    drawn = vit_torch.draw_masks(config, 4000, torch.Generator().manual_seed(0))
    # Four standard errors of a proportion over 4000 draws and more; seeded, so it cannot flicker.
    for site, rate in {"pos_drop": 0.25, "attn.attn_drop": 0.1, "mlp.drop1": 0.25}.items():
        assert abs((drawn[site] == 0).double().mean() - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5
    per_layer = (drawn["drop_path1"] == 0).double().mean(dim=1)
    assert torch.allclose(per_layer, torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64), atol=4 * (0.24 / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), "images have 1 channels, the model takes 3 (NCHW)"),
        ((1, 3, 16, 16), "images are 16x16"),
        ((1, 8, 8, 3), "images have 8 channels"),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        vit_torch.from_seed(MODEL, 0)(torch.zeros(shape))
    assert message in str(error.value)
    with pytest.raises(InputError, match="images are 10x8, not a multiple of the patch"):
        vit_torch.from_seed(MODEL, 0)(torch.zeros(1, 3, 10, 8), interpolate=True)


def test_images_without_a_batch_axis_or_not_normalized() -> None:
    model = vit_torch.from_seed(MODEL, 0)
    with pytest.raises(InputError, match=r"shape \[3, 8, 8\], the model takes \[B, C, H, W\]; for one, x\[None\]"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match=r"images are torch.uint8, the model takes floats: .*normalize"):
        model.eval()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"shape \[8, 3, 8\], the model takes"):
        vit_torch.predict(model, np.zeros((8, 8, 3)))
