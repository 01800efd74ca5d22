"""Trees of JAX projects, as flax.serialization and Orbax write them: Google's names, bonsai's and jimm's, in float64.

Files are made by the writers that people use: serialization.to_bytes of a dictionary or of a TrainState, Orbax's
StandardCheckpointer, PyTreeCheckpointer and CheckpointManager, of Linen's dictionaries and of NNX states.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

import vit_jax
import vit_torch
from parity_tests.formats import nnx_models
from parity_tests.formats.google_files import GOOGLE, LINEN, Arrays, file_shapes, random_arrays, stacked
from parity_tests.formats.google_reference import assert_equal, forward, images, in_jax, in_torch
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError

Tree = dict[str, Any]


def nested(arrays: Arrays) -> Tree:
    tree: Tree = unflatten_dict({tuple(name.split("/")): jnp.asarray(array) for name, array in arrays.items()})
    return tree


def boxed(tree: Tree, key: str) -> Tree:
    """Every array under one more key, as nnx.State keeps its values ("value"; "raw_value" in some versions)."""
    return {name: boxed(value, key) if isinstance(value, dict) else {key: value} for name, value in tree.items()}


def train_state(params: Tree) -> Any:
    return TrainState.create(apply_fn=lambda: None, params=params, tx=optax.adam(1e-3))


def state_tree(params: Tree) -> Tree:
    """As trainers keep it: a step, the parameters, the optimizer's statistics under the same names."""
    return {"step": 3, "params": params, "opt_state": optax.adam(1e-3).init(params)}


def msgpack(path: Path, tree: Any) -> Path:
    path.with_suffix(".msgpack").write_bytes(serialization.to_bytes(tree))
    return path.with_suffix(".msgpack")


def orbax(path: Path, tree: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def orbax_tree(path: Path, tree: Any) -> Path:
    ocp.PyTreeCheckpointer().save(path, tree)
    return path


def managed(path: Path, tree: Any) -> Path:
    """A step of a CheckpointManager, with another item."""
    with ocp.CheckpointManager(path) as manager:
        manager.save(5, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), data=ocp.args.JsonSave({"seen": 7})))
    return path / "5"


def pickled(path: Path, tree: Any) -> Path:
    path.with_suffix(".pkl").write_bytes(pickle.dumps(jax.tree.map(np.asarray, tree)))
    return path.with_suffix(".pkl")


def dotted(path: Path, arrays: Arrays) -> Path:
    """Flax's names joined by dots, as safetensors of ports have them."""
    save_file({name.replace("/", "."): array for name, array in arrays.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def scenic(arrays: Arrays) -> Tree:
    """Scenic's name of the head."""
    return nested({name.replace("head/", "output_projection/"): array for name, array in arrays.items()})


WRITERS: dict[str, Callable[[Path, Arrays], Path]] = {
    "pickle": lambda path, arrays: pickled(path, nested(arrays)),
    "pickle, training state": lambda path, arrays: pickled(path, {"params": nested(arrays), "step": 3}),
    "safetensors, dots": dotted,
    "Scenic": lambda path, arrays: msgpack(path, state_tree(scenic(arrays))),
    "Scenic, flax.optim": lambda path, arrays: msgpack(
        path, {"optimizer": {"target": scenic(arrays), "state": {"param_states": scenic(arrays)}}, "global_step": 3}
    ),
    "msgpack, bare": lambda path, a: msgpack(path, nested(a)),
    "msgpack, params": lambda path, a: msgpack(path, {"params": nested(a)}),
    "msgpack, TrainState": lambda path, a: msgpack(path, train_state(nested(a))),
    "msgpack, two TrainStates deep": lambda path, a: msgpack(path, {"model": train_state({"params": nested(a)})}),
    "msgpack, boxed": lambda path, a: msgpack(path, boxed(nested(a), "value")),
    "Orbax, bare": lambda path, a: orbax(path, nested(a)),
    "Orbax, train state": lambda path, a: orbax(path, state_tree(nested(a))),
    "Orbax, TrainState": lambda path, a: orbax(path, train_state(nested(a))),
    "Orbax, PyTreeCheckpointer": lambda path, a: orbax_tree(path, state_tree(nested(a))),
    "Orbax, CheckpointManager": lambda path, a: managed(path, state_tree(nested(a))),
    "Orbax, NNX": lambda path, a: orbax(path, boxed(nested(a), "value")),
    "Orbax, NNX of another version": lambda path, a: orbax(path, {"model": boxed(nested(a), "raw_value")}),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("format", ["google", "big_vision"])
def test_googles_names(format: str, writer: str, tmp_path: Path) -> None:
    positions = GOOGLE if format == "google" else "pos_embedding"
    pool = "tok" if format == "google" else "map"
    arrays = random_arrays(file_shapes(parts=LINEN, positions=positions, pool=pool))
    found = open_checkpoint(WRITERS[writer](tmp_path / "tree", arrays))
    assert found.format == format
    x = images()
    expected = forward(arrays, x, pool=pool, positions=positions)
    assert_equal(in_torch(found, x, dtype="float64"), expected)
    if writer == "Orbax, NNX":
        assert_equal(in_jax(found, x, dtype="float64"), expected)


def test_scanned_layers_in_an_orbax_folder(tmp_path: Path) -> None:
    arrays = random_arrays(file_shapes(parts=LINEN, positions="pos_embedding", pool="gap"))
    found = open_checkpoint(orbax(tmp_path / "tree", {"params": nested(stacked(arrays, 2))}))
    assert_equal(in_torch(found, images()), forward(arrays, images(), pool="gap", positions="pos_embedding"))


@pytest.mark.parametrize("key", ["ema_params", "ema", "params_ema"])
def test_averages_come_first_and_the_trained_weights_by_name(key: str, tmp_path: Path) -> None:
    trained, average = (random_arrays(file_shapes(parts=LINEN), seed) for seed in (0, 1))
    path = msgpack(tmp_path / "tree", {**state_tree(nested(trained)), key: nested(average)})
    found = open_checkpoint(path)
    assert_equal(in_torch(found, images()), forward(average, images(), pool="tok", positions=GOOGLE))
    assert any("other models in the file: params" in note for note in found.notes)
    chosen = open_checkpoint(path, part="params")
    assert_equal(in_torch(chosen, images()), forward(trained, images(), pool="tok", positions=GOOGLE))


def test_boxed_parameters_of_linen(tmp_path: Path) -> None:
    """with_partitioning puts a box around a parameter, which both writers save as one more key."""
    layer = linen.Dense(3, kernel_init=linen.with_partitioning(linen.initializers.ones, ("in", "out")))
    variables = layer.init(nnx.Rngs(0).params(), jnp.ones((1, 2)))
    assert set(serialization.to_state_dict(variables)["params"]["kernel"]) == {"value"}
    arrays = random_arrays(file_shapes(parts=LINEN))
    tree = nested(arrays)
    tree["head"]["kernel"] = {"value": tree["head"]["kernel"]}
    found = open_checkpoint(msgpack(tmp_path / "tree", {"params": tree}))
    assert_equal(in_torch(found, images()), forward(arrays, images(), pool="tok", positions=GOOGLE))


def by(model: Any, x_BHWC: np.ndarray) -> np.ndarray:
    return np.asarray(model(jnp.asarray(x_BHWC)))


NNX_WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "Orbax, nnx.state": lambda path, model: orbax(path, nnx.state(model)),
    "Orbax, parameters": lambda path, model: orbax(path, {"params": nnx.state(model, nnx.Param), "step": 3}),
    "Orbax, pure": lambda path, model: orbax_tree(path, nnx.to_pure_dict(nnx.state(model, nnx.Param))),
    "Orbax, model and optimizer": lambda path, model: orbax(
        path, nnx.state((model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)))
    ),
    "msgpack, pure": lambda path, model: msgpack(path, texts(nnx.to_pure_dict(nnx.state(model, nnx.Param)))),
}


def texts(tree: Any) -> Any:
    """Keys as text, which flax.serialization asks for."""
    return {str(key): texts(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


@pytest.mark.parametrize("writer", NNX_WRITERS)
def test_bonsai(writer: str, tmp_path: Path) -> None:
    model = nnx_models.randomized(nnx_models.Bonsai())
    found = open_checkpoint(NNX_WRITERS[writer](tmp_path / "tree", model))
    assert (found.format, found.config.model.heads, found.config.model.depth) == ("bonsai", 3, 2)
    assert {one.field for one in found.assumptions} == {"image_size", "norm_epsilon"}
    assert_equal(in_torch(found, images()), by(model, images()))
    assert_equal(in_jax(found, images()), by(model, images()))


def test_bonsai_with_another_epsilon(tmp_path: Path) -> None:
    model = nnx_models.randomized(nnx_models.Bonsai(1e-3))
    path = orbax(tmp_path / "tree", nnx.state(model))
    assert_equal(in_torch(open_checkpoint(path, fields={"norm_epsilon": 1e-3}), images()), by(model, images()))


@pytest.mark.parametrize("writer", NNX_WRITERS)
def test_jimms_clip(writer: str, tmp_path: Path) -> None:
    model = nnx_models.randomized(nnx_models.JimmCLIP())
    found = open_checkpoint(NNX_WRITERS[writer](tmp_path / "tree", model))
    assert (found.format, found.config.model.activation) == ("jimm", "quick_gelu")
    assert {one.field for one in found.assumptions} == {
        *("image_size", "activation", "norm_epsilon", "position_resampling")
    }
    assert_equal(in_torch(found, images()), by(model, images()))
    assert any("left out" in note and "text_model" in note for note in found.notes)


JIMM: dict[str, Callable[..., Any]] = {
    "VisionTransformer": nnx_models.JimmViT,
    "SigLIP": nnx_models.JimmSigLIP,
    "VisionTransformer before July 2025": nnx_models.JimmBefore,
}


@pytest.mark.parametrize("name", JIMM)
def test_jimms_models_with_two_epsilons(name: str, tmp_path: Path) -> None:
    """ViTConfig has one epsilon: refused until the user chooses, and then the difference is that of the message."""
    model = nnx_models.randomized(JIMM[name]())
    path = orbax(tmp_path / "tree", nnx.state(model))
    last = "1e-6" if name == "SigLIP" else "1e-12"
    with pytest.raises(InputError, match=re.escape(f"1e-5 in the blocks and {last} in the last norm")) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    found = open_checkpoint(path, fields={"norm_epsilon": 1e-5})
    apart = parity.difference(in_torch(found, images()), by(model, images()))[1]
    # The last norm divides by sqrt(variance + 1e-5): 1e-4 of its output for a variance of 0.05, and less above.
    assert parity.FLOAT64_BOUND < apart < 1e-4
    same = nnx_models.randomized(JIMM[name](1e-5))
    assert_equal(
        in_torch(open_checkpoint(orbax(tmp_path / "same", nnx.state(same)), fields={"norm_epsilon": 1e-5}), images()),
        by(same, images()),
    )


def test_a_tree_of_another_network_says_what_it_holds(tmp_path: Path) -> None:
    path = orbax(tmp_path / "tree", {"params": {"decoder": {"kernel": jnp.ones((2, 3))}, "step": 3}})
    with pytest.raises(InputError, match="params/decoder/kernel") as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)


def test_both_twins_agree_on_a_tree_of_jimm(tmp_path: Path) -> None:
    model = nnx_models.randomized(nnx_models.JimmSigLIP(1e-5))
    path = orbax(tmp_path / "tree", nnx.state(model))
    found = open_checkpoint(path, fields={"norm_epsilon": 1e-5})
    x = images()
    in_two = vit_torch.predict(vit_torch.load(found), x), vit_jax.predict(vit_jax.load(found), x)
    assert parity.difference(*in_two)[1] <= parity.FLOAT64_BOUND
