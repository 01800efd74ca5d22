"""Plans: the step of a small model compiled for TPUs that are not present, and the numbers read from it."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_core import ViTConfig, flops, variant
from vit_core.parameters import count
from vit_train.config import Mesh, Optimizer, Schedule, TrainConfig
from vit_train.data.batches import Batches
from vit_train.engines.jax.engine import JaxEngine
from vit_train.planning import compilation, hlo, topologies
from vit_train.planning.compilation import refused_bytes
from vit_train.planning.plan import Plan, plan, target
from vit_train.planning.topologies import parse
from vit_train.tests.fixtures import Vit
from vit_train.tests.small_run import CONFIG, quadrants

D, F, L, CLASSES, PATCH, TOKENS = 256, 1024, 3, 16, 8 * 8 * 3, 17
SMALL = TrainConfig(
    model=ViTConfig(image_size=32, patch_size=8, width=D, depth=L, heads=4, mlp_dim=F, num_classes=CLASSES),
    optimizer=Optimizer(clip_norm=1.0),
    schedule=Schedule(warmup_steps=2),
    steps=10,
    batch_size=64,
    mesh=Mesh(fsdp=4),
    compute_dtype="bfloat16",
)
pytestmark = pytest.mark.usefixtures("without_hardware")
RECIPE = """
from vit_train.planning.tests.test_plan import SMALL


def pretrain():
    return SMALL
"""
MATRICES = L * (D * 3 * D + D * D + 2 * D * F) + PATCH * D + TOKENS * D + D * CLASSES
VECTORS = L * (3 * D + D + F + D + 4 * D) + D + D + 2 * D + CLASSES
"""Values of: biases and norms of the blocks; bias of the patches, class token, last norm, bias of the head."""


@pytest.fixture(scope="module")
def on_v5e(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, str]:
    """The small model planned for sixteen chips, and the text of its program."""
    texts: list[str] = []

    class Recorded(hlo.Program):
        def __init__(self, text: str) -> None:
            texts.append(text)
            super().__init__(text)

    # Other tests may have enabled 64-bit types, which a TPU emulates with pairs of 32-bit values.
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        for name, value in topologies.WITHOUT_HARDWARE.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(compilation, "Program", Recorded)
        made = plan(SMALL, target(parse("v5e:4x4")))
    return made, texts[0]


@pytest.mark.slow
def test_bytes_of_a_chip_equal_those_worked_out_by_hand(on_v5e: tuple[Plan, str]) -> None:
    """Matrices are divided by four, vectors are not; AdamW has two statistics for each parameter."""
    made, _ = on_v5e
    assert made.parameters == MATRICES + VECTORS
    share = 4 * (MATRICES // 4 + VECTORS)
    images = 64 // 16
    assert made.shares == {
        "parameters": share,
        "optimizer state": 2 * share,
        "counters": 4,
        "batch": images * (32 * 32 * 3 + 4 * CLASSES + 4 + 4 + 16),
    }
    memory = made.compiled.memory
    assert memory is not None
    # The rest is padding: the chip's tiles are 8 x 128 numbers, and rows of 256 / 4 fill half of a tile.
    assert 1 < memory.arguments / sum(made.shares.values()) < 1.4
    assert (
        made.compiled.needed == memory.arguments + memory.outputs - memory.aliased + memory.temporaries + memory.program
    )
    assert memory.aliased > 0.99 * sum(made.shares[name] for name in ("parameters", "optimizer state"))
    assert made.fits


@pytest.mark.slow
def test_weights_are_gathered_layer_by_layer_and_never_whole(on_v5e: tuple[Plan, str]) -> None:
    made, text = on_v5e
    found = hlo.by_kind(list(made.compiled.collectives))
    assert made.compiled.uncounted == ()
    assert found["all-gather"]
    assert found["reduce-scatter"]
    assert found["all-reduce"]
    layers = [each for each in found["all-gather"] if each.size == 2 * D * F]
    assert {each.group for each in layers} == {4}
    assert sum(each.times for each in layers) == 2 * 2 * L, "two matrices, forward and backward, in each layer"
    summed = {shape.removeprefix("1,") for each in found["all-reduce"] for shape in lengths(each)}
    assert f"{D // 4},{F}" in summed, "over data, of the part that a chip keeps"
    qkv, proj = (f"{D},{3 * D}", f"{D},3,4,{D // 4}"), (f"{D},{D}", f"4,{D // 4},{D}")
    for weight in (f"{D},{F}", f"{F},{D}", *qkv, *proj):
        assert weight not in summed, "a whole weight"
        assert not re.search(rf"\b(f32|bf16)\[{L},{weight}\]", text), "a stack of whole weights"


def lengths(found: hlo.Collective) -> list[str]:
    """Lengths of its results: "256,1024"."""
    return re.findall(r"\[([\d,]*)\]", found.shape)


@pytest.mark.slow
def test_bounds(on_v5e: tuple[Plan, str]) -> None:
    made, _ = on_v5e
    memory = made.compiled.memory
    assert memory is not None
    received = sum(each.received for each in made.compiled.collectives)
    assert made.bounds == {
        "FLOPs": pytest.approx(made.training_flops * 64 / 16 / 197e12),
        "memory": pytest.approx((memory.arguments + memory.outputs + 2 * memory.temporaries) / 819e9),
        "links": pytest.approx(received / 200e9),
    }


@pytest.mark.slow
def test_the_program_executes_the_products_of_the_model(on_v5e: tuple[Plan, str]) -> None:
    """All products except those of the gradient of the images, which is not computed."""
    made, _ = on_v5e
    counts = flops.forward(SMALL.model)
    assert made.executed_share == 3 * sum(counts.values()) / (3 * sum(counts.values()) - counts["patch_embed"])


def test_arguments_are_the_arrays_of_a_run() -> None:
    """On this machine, to the byte: the state and the batch of an engine, and the scalar arguments of a step."""
    config = CONFIG
    engine = JaxEngine(config)
    batch = Batches(quadrants(), config)[0]._replace(ids_B=None)
    made = plan(config, target(None))
    state = {name: x.nbytes for name, x in engine.state.items()}
    assert made.shares["parameters"] == sum(held for name, held in state.items() if name.startswith("params/"))
    assert made.shares["batch"] == sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
    scalars = {"step": 4, "stop": 4, "rates": 4 * 4, "skippable": 4, "loss limit": 4}
    assert made.compiled.memory is not None
    assert made.compiled.memory.arguments == sum(state.values()) + made.shares["batch"] + sum(scalars.values())


def xla_flops(config: ViTConfig, remat: str) -> float:
    """FLOPs of a forward and backward pass for one image, as XLA counts them."""
    graph, state = nnx.split(nnx.eval_shape(lambda: vit_jax.ViT(config, rngs=nnx.Rngs(0), remat=remat)))  # type: ignore[arg-type]
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.channels), "float32")
    loss = jax.value_and_grad(lambda state, images: nnx.merge(graph, state)(images).sum())
    return float(jax.jit(loss).lower(state, images).cost_analysis()["flops"])


def test_flops_equal_what_xla_counts() -> None:
    """XLA counts softmax, norms and GELU too; the arithmetic counts a gradient of the images, which is not needed."""
    config = variant("S/16", 224, 1000).replace(depth=2)
    # Operations on each value of a block that are no matrix product, at most: 9 for each of two norms, 12 for GELU, one
    # for each bias and residual; 5 for each score in the softmax. The backward pass has twice as many.
    D, N = config.width, config.tokens
    others = config.depth * N * ((2 * 9 + 9 + 2) * D + 12 * config.mlp_dim + 5 * config.heads * N)
    forward, plain = sum(flops.forward(config).values()), xla_flops(config, "none")
    assert 0 < plain + flops.forward(config)["patch_embed"] - 3 * forward < 3 * others
    for remat in ("dots", "full"):
        again = xla_flops(config, remat) - plain
        assert 0 <= again - flops.recomputed(config, remat) < others  # type: ignore[arg-type]
    assert flops.recomputed(config, "none") == 0


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.02G) "
            "exceeds available HBM (15.75G).",
            16.02 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 19.91G "
            "of 15.75G hbm. Exceeded hbm capacity by 4.16G.",
            19.91 * 2**30,
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_bytes_in_messages_of_xla(message: str, needed: float | None) -> None:
    assert refused_bytes(message) == (None if needed is None else int(needed))


@pytest.mark.release
def test_the_command(vit: Vit, tmp_path: Path) -> None:
    """The printed text; the second call reuses the compilation; exit status 1 if the plan does not fit."""
    (tmp_path / "tiny.py").write_text(
        "from vit_train.tests.small_run import CONFIG\ndef pretrain():\n    return CONFIG\n"
    )
    words = "plan", tmp_path / "tiny.py", "--topology", "v5e:2x2"
    assert "by an earlier run" not in vit(*words)
    out = vit(*words, "--optimizer.learning-rate", "0.1")
    assert "by an earlier run" in out
    for row in (f"{count(CONFIG.model):,}", "data 4 x fsdp 1 x tensor 1", "all-reduce", "links", "15.75 GiB", "fits, "):
        assert row in out
    for row in (
        "parameters",
        "optimizer state",
        "batch",
        "activations",
        "temporaries",
        "peak",
        "capacity",
        "moved",
        "received",
    ):
        assert re.search(rf"^ +{row} +[\d.]+ ([KMG]i)?B", out, re.MULTILINE), row
    with pytest.MonkeyPatch.context() as patch:
        chip = replace(topologies.FAMILIES["v5e"].chip, memory=2**20)
        patch.setitem(topologies.FAMILIES, "v5e", replace(topologies.FAMILIES["v5e"], chip=chip))
        assert "does not fit" in vit(*words, status=1)


def test_the_command_without_libtpu(vit: Vit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.py").write_text(RECIPE)
    monkeypatch.setattr("vit_cli.requirements.find_spec", lambda name: None if name == "libtpu" else object())
    said = vit("plan", tmp_path / "small.py", "--topology", "v5e:4x4", status=2)
    assert said == "vit: error: this command needs libtpu: pip install 'vit-parity[tpu]'\n"


def test_a_batch_or_mesh_that_the_slice_cannot_divide_is_refused(vit: Vit, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(RECIPE)
    said = vit("plan", tmp_path / "small.py", "--topology", "v5e:4x4", "--batch-size", "24", status=2)
    assert "batch_size: 24 cannot be shared by 16 devices" in said
    said = vit("plan", tmp_path / "small.py", "--topology", "v5e:2x2", "--mesh.fsdp", "16", status=2)
    assert "needs a multiple of 16 devices, there are 4" in said
