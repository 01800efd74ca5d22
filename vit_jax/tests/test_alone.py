"""The JAX twin without PyTorch, and what only it does: scanned storage, rematerialisation, pure masks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
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
from vit_jax import arrays
from vit_jax.attention import attend

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=3, heads=2, mlp_dim=16, num_classes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    save_checkpoint(tmp_path / "checkpoint", Checkpoint.of(CheckpointConfig(model=MODEL), values))
    return tmp_path / "checkpoint"


@pytest.mark.slow
def test_loads_where_torch_cannot_be_imported(folder: Path) -> None:
    """And imports pydantic, schemas and formats only when it loads: `vit bench startup` measures the import."""
    program = f"""
import sys
class Absent:
    def find_spec(name, *_):
        if name.split(".")[0] in "torch torchvision timm transformers tensorflow_datasets grain".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
import jax.numpy as jnp, vit_jax
print("pydantic" in sys.modules)
model = vit_jax.load({str(folder)!r}, image_size=16)
vit_jax.save(model, {str(folder / "again")!r}, dtype="bfloat16")
print(model(jnp.zeros((2, 16, 16, 3))).shape, vit_jax.load({str(folder / "again")!r}).head.kernel.dtype)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n(2, 3) bfloat16\n", done.stderr


@pytest.mark.parametrize("scan", [False, True])
def test_save_and_load_are_inverse(folder: Path, tmp_path: Path, scan: bool) -> None:
    vit_jax.save(vit_jax.load(folder, scan=scan), tmp_path / "again")
    first, again = open_checkpoint(folder), open_checkpoint(tmp_path / "again")
    assert first.config == again.config
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 2**-6)])
def test_resized_at_load_or_at_run_time_is_the_same(folder: Path, dtype: str, bound: float) -> None:
    # Both resample from the same type and round once: the bounds are the forward pass's own, four ulps in bfloat16.
    with jax.enable_x64(True):
        x_BHWC = jax.random.uniform(jax.random.key(0), (2, 16, 12, 3), jnp.float64)
        how = {"dtype": dtype, "position_embedding_method": "bicubic"}
        at_load = vit_jax.load(folder, image_size=(16, 12), **how)(x_BHWC)
        at_run_time = vit_jax.load(folder, **how)(x_BHWC, interpolate=True)
        assert jnp.abs(at_load - at_run_time).max() <= bound * jnp.abs(at_load).max()


def test_float64_needs_x64(folder: Path) -> None:
    with jax.enable_x64(False):
        for make in (
            lambda: vit_jax.load(folder, dtype="float64"),
            lambda: vit_jax.from_seed(MODEL, 0, dtype="float64"),
        ):
            with pytest.raises(InputError, match="float64 parameters need jax_enable_x64"):
                make()


def test_what_the_folder_said_is_saved_again(folder: Path, tmp_path: Path) -> None:
    told = open_checkpoint(folder).config.replace(labels=("a", "b", "c"), provenance=Provenance(run="run", step=7))
    save_checkpoint(folder, Checkpoint.of(told, dict(open_checkpoint(folder).arrays)))
    vit_jax.save(vit_jax.load(folder, image_size=16), tmp_path / "again")
    again = open_checkpoint(tmp_path / "again").config
    assert (again.labels, again.provenance.step) == (told.labels, 7)
    assert again.provenance.position_resampling[0].target == (4, 4)


def test_unknown_kernels_and_masks_are_refused() -> None:
    for options in ({"attention": "flash"}, {"remat": "Dots"}):
        with pytest.raises(InputError, match="unknown"):
            vit_jax.from_seed(MODEL, 0, **options)
    with pytest.raises(InputError, match=r"unknown mask 'drop_path'; did you mean 'drop_path"):
        vit_jax.from_seed(MODEL, 0)(jnp.zeros((1, 8, 8, 3)), {"drop_path": jnp.ones((3, 1))})


def test_scanned_parameters_are_stacked(folder: Path) -> None:
    model = vit_jax.load(folder, scan=True)
    assert model.blocks.attn.qkv.kernel.shape == (3, 16, 3, 2, 8)
    new, same = vit_jax.ViT(MODEL, rngs=nnx.Rngs(4), scan=True), vit_jax.ViT(MODEL, rngs=nnx.Rngs(4))
    for name, value in arrays.read(same).items():
        np.testing.assert_array_equal(arrays.read(new)[name], value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "float16"])
def test_dtype_is_of_parameters_and_output(folder: Path, dtype: Any) -> None:
    model = vit_jax.load(folder, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(dtype)}
    assert model(jnp.zeros((1, 8, 8, 3))).dtype == jnp.dtype(dtype)


def saved_arrays(model: vit_jax.ViT) -> list[jax.Array]:
    """What the forward pass of eight images keeps for the backward one: the residuals jax.vjp closes over."""
    graph, state = nnx.split(model)
    _, pull = jax.vjp(lambda state: nnx.merge(graph, state)(jnp.zeros((8, 8, 8, 3))), state)
    return [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes")]


def saved_bytes(model: vit_jax.ViT) -> int:
    return sum(leaf.nbytes for leaf in saved_arrays(model))


@pytest.mark.slow
def test_rematerialisation_keeps_less(folder: Path) -> None:
    kept = {remat: saved_bytes(vit_jax.load(folder, scan=True, remat=remat)) for remat in ("none", "dots", "full")}
    assert kept["full"] < kept["dots"] < kept["none"]


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_scanned_layers_keep_results_of_products_once(activation: str) -> None:
    """Not GELU's parts beside what GELU is given, nor the softmax's beside the scores."""
    config = MODEL.replace(mlp_dim=24, activation=activation)
    L, N, T, F = config.depth, config.tokens, config.heads, config.mlp_dim
    shapes = [leaf.shape for leaf in saved_arrays(vit_jax.ViT(config, rngs=nnx.Rngs(0), scan=True))]
    assert shapes.count((L, 8, N, F)) == shapes.count((L, 8, T, N, N)) == 1


def test_masks_are_a_function_of_the_key() -> None:
    config = MODEL.replace(stochastic_depth=0.5, dropout=0.1)
    first, same, other = (vit_jax.draw_masks(config, 4, jax.random.key(i)) for i in (0, 0, 1))
    model = vit_jax.from_seed(config.replace(head_bias_init=1.0), 0)
    images = jax.random.uniform(jax.random.key(3), (4, 8, 8, 3))
    assert all(jnp.array_equal(first[site], same[site]) for site in first)
    assert not jnp.array_equal(first["pos_drop"], other["pos_drop"])
    features = [model.forward_features(images, masks) for masks in (None, first, other)]
    assert not any(jnp.array_equal(features[i], features[i - 1]) for i in range(3))


def test_drop_rates_are_the_configs() -> None:
    config = MODEL.replace(stochastic_depth=0.4, dropout=0.25, attention_dropout=0.1)
    drawn = vit_jax.draw_masks(config, 4000, jax.random.key(0))
    # Four standard errors of a proportion over 4000 draws and more; seeded, so it cannot flicker.
    for site, rate in {"pos_drop": 0.25, "attn.attn_drop": 0.1, "mlp.drop1": 0.25}.items():
        assert abs(float((drawn[site] == 0).mean()) - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5
    per_layer = (drawn["drop_path1"] == 0).mean(axis=1)
    np.testing.assert_allclose(per_layer, [0.0, 0.2, 0.4], atol=4 * (0.24 / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8, 1), "images have 1 channels, the model takes 3 (NHWC)"),
        ((1, 16, 16, 3), "images are 16x16"),
        ((1, 3, 8, 8), "images have 8 channels"),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        vit_jax.from_seed(MODEL, 0)(jnp.zeros(shape))
    assert message in str(error.value)
    with pytest.raises(InputError, match="images are 10x8, not a multiple of the patch"):
        vit_jax.from_seed(MODEL, 0)(jnp.zeros((1, 10, 8, 3)), interpolate=True)


def test_images_without_a_batch_axis_or_not_normalized() -> None:
    model = vit_jax.from_seed(MODEL, 0)
    with pytest.raises(InputError, match=r"shape \[8, 8, 3\], the model takes \[B, H, W, C\]; for one, x\[None\]"):
        model(jnp.zeros((8, 8, 3)))
    with pytest.raises(InputError, match=r"images are uint8, the model takes floats: .*normalize"):
        model(jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(InputError, match=r"shape \[8, 8, 3\], the model takes"):
        vit_jax.predict(model, np.zeros((8, 8, 3)))


def test_a_stream_of_images_is_compiled_once(folder: Path) -> None:
    """The last batch is filled up; a single image is another size, compiled when it comes."""
    images = [np.full((9, 9, 3), level, np.uint8) for level in range(7)]
    with pytest.warns(UserWarning, match="does not record how its images were made"):
        classify = vit_jax.pipeline(folder, labels=("a", "b", "c"), batch_size=3)
    assert len(list(classify.stream(images))) == 7
    assert classify.function.values._cache_size() == 1  # type: ignore[attr-defined]
    classify(images[0])
    assert classify.function.values._cache_size() == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("backend", ["gpu", "cpu", "tpu"])
def test_cudnn_is_asked_for_on_gpus_in_16_bits(backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: what is asked for is recorded, and answered by XLA's implementation."""
    real, asked = jax.nn.dot_product_attention, []

    def recorded(*args: Any, implementation: str | None = None) -> jax.Array:
        asked.append(implementation)
        return real(*args)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    q_BNTK = jax.random.normal(jax.random.key(0), (1, 6, 2, 8), dtype)
    assert attend(q_BNTK, q_BNTK, q_BNTK, "fused").dtype == dtype
    assert asked == ["cudnn" if backend == "gpu" and dtype != "float32" else None]


def test_where_cudnn_refuses_xla_computes_and_it_is_noted_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = jax.nn.dot_product_attention

    def refusing(*args: Any, implementation: str | None = None) -> jax.Array:
        if implementation == "cudnn":
            raise RuntimeError("cuDNN is not detected.")
        return real(*args)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", refusing)
    caplog.set_level("INFO", "vit")
    q_BNTK = jax.random.normal(jax.random.key(0), (1, 6, 2, 8), jnp.bfloat16)
    for _ in range(2):
        np.testing.assert_array_equal(attend(q_BNTK, q_BNTK, q_BNTK, "fused"), real(q_BNTK, q_BNTK, q_BNTK))
    assert [record.getMessage() for record in caplog.records] == [
        "attention: cuDNN's kernel cannot be used (cuDNN is not detected.); XLA's is"
    ]


@pytest.mark.parametrize(
    ("N", "M", "bias_shape"),
    [
        pytest.param(6, 7, (3, 1, 1, 7), marks=pytest.mark.slow),
        pytest.param(5, 5, (2, 5, 5), marks=pytest.mark.release),
        pytest.param(1, 4, None, marks=pytest.mark.release),
    ],
    ids=str,
)
def test_odd_numbers_of_tokens_are_padded_for_cudnn(
    N: int, M: int, bias_shape: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel refuses them when the derivative is compiled (jax 0.11.2 on an H100). XLA takes its place here: values
    and gradients are those of the plain path."""
    real, asked = jax.nn.dot_product_attention, []

    def by_xla(*args: Any, implementation: str | None = None, **lengths: Any) -> jax.Array:
        asked.append((implementation, args[0].shape[1], args[1].shape[1]))
        return real(*(each.astype("float32") for each in args if each is not None), **lengths)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    keys = jax.random.split(jax.random.key(0), 4)
    q_BNTK, k_BMTK, v_BMTK = (
        jax.random.normal(key, (3, n, 2, 8), jnp.bfloat16).astype(jnp.float32)
        for key, n in zip(keys, (N, M, M), strict=False)
    )
    bias = None if bias_shape is None else jax.random.normal(keys[3], bias_shape)

    def result(kind: Any, dtype: str) -> Any:
        def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            q, k, v = (x.astype(dtype) for x in inputs)
            out = attend(q, k, v, kind, bias=None if bias is None else bias.astype(dtype))
            return jnp.square(out.astype("float32")).sum(), out

        (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q_BNTK, k_BMTK, v_BMTK)
        return out, *gradients

    padded, plain = result("fused", "bfloat16"), result("plain", "float32")
    assert set(asked) == {("cudnn", N + N % 2, M + M % 2)}
    for ours, theirs in zip(padded, plain, strict=True):
        # The inputs are bfloat16 values already; the results, the bias and the gradients are rounded to it, 2**-9 each.
        assert jnp.abs(ours.astype("float32") - theirs).max() <= 4 * 2**-9 * jnp.abs(theirs).max()
