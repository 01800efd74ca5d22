"""The PyTorch engine by itself: recomputation, rounded moments, skipped updates, its rows of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vit_core import Checkpoint, CheckpointConfig, InputError, parity
from vit_core.preprocess import offset_and_scale
from vit_train.config import Mesh, TrainConfig
from vit_train.data.batches import Batch, Batches
from vit_train.engines.torch.engine import TorchEngine
from vit_train.engines.torch.processes import Processes, join
from vit_train.engines.torch.recorded import RecordedUpdate, may_be_recorded
from vit_train.engines.torch.sharding import resolve_mesh
from vit_train.tests.small_run import CONFIG, quadrants, run_in, save_step

SPLIT = quadrants()
EXACT = CONFIG.replace(dtype="float64", accumulation=2)


def batches(config: TrainConfig = CONFIG) -> list[Batch]:
    made = Batches(SPLIT, config)
    return [made[step] for step in range(6)]


def after(engine: TorchEngine, steps: dict[int, Batch]) -> TorchEngine:
    """The engine after the updates of these numbers."""
    for step, batch in steps.items():
        engine.train_step(batch, step)
    return engine


def state_of(engine: TorchEngine) -> dict[str, np.ndarray]:
    """All of an engine's state except the number of skipped updates."""
    averages = {f"averaged/{name}": array for name, array in engine.export(averaged=True).items()}
    return {k: v for k, v in engine.statistics().items() if k != "skipped"} | engine.export() | averages


class NeverWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a tensor's value, or a result whose size depends on it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.WAITING, f"the host waits in {func}"
        return func(*args, **(kwargs or {}))


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in b:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_does_not_change_a_step(remat: Any) -> None:
    steps = dict(enumerate(batches(EXACT)[:3]))
    kept, again = (state_of(after(TorchEngine(EXACT.replace(remat=how)), steps)) for how in ("none", remat))
    for name, expected in kept.items():
        assert parity.difference(again[name], expected)[1] <= parity.FLOAT64_BOUND, name


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_rounds_as_the_forward_pass(remat: Any) -> None:
    """In bfloat16 the weights are cast for the forward pass: the backward pass must recompute with the same ones."""
    low = CONFIG.replace(compute_dtype="bfloat16")
    kept, again = (after(TorchEngine(low.replace(remat=how)), {0: batches()[0]}) for how in ("none", remat))
    assert_equal(state_of(again), state_of(kept))


def test_bfloat16_moments_are_saved_and_restored(tmp_path: Path) -> None:
    config = CONFIG.replace(ema=None, optimizer=CONFIG.optimizer.replace(moment_dtype="bfloat16"))
    made = dict(enumerate(batches(config)))
    engine = after(TorchEngine(config), {step: made[step] for step in (0, 1, 2)})
    statistics = engine.statistics()
    kinds = {key.partition("/")[0]: array.dtype for key, array in statistics.items() if "/" in key}
    assert kinds == {"first_moment": np.dtype(ml_dtypes.bfloat16), "second_moment": np.dtype(np.float32)}
    again = TorchEngine(config, saved=save_step(run_in(tmp_path, config), engine, 3))
    rest = {step: made[step] for step in (3, 4)}
    assert_equal(state_of(after(again, rest)), state_of(after(engine, rest)))
    exact = after(TorchEngine(CONFIG), {step: made[step] for step in range(5)})
    assert not np.array_equal(exact.export()["head.weight"], engine.export()["head.weight"])


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("not finite", "adamw"), ("not finite", "muon"), ("not finite", "sgd"), ("exploded", "adamw")],
)
def test_a_skipped_update_leaves_no_trace(kind: str, optimizer: Any, tmp_path: Path) -> None:
    """A run that skipped a step equals one that never had the step; also after saving and resuming."""
    config = CONFIG.replace(skippable=1, optimizer=CONFIG.optimizer.replace(name=optimizer))
    made = batches(config)
    good = {step: made[step] for step in (0, 1, 3, 4)}
    bad = made[2]._replace(targets_BC=made[2].targets_BC * (np.nan if kind == "not finite" else 1e3))
    engine, without = TorchEngine(config), after(TorchEngine(config), good)
    after(engine, {0: made[0], 1: made[1], 2: bad})
    assert engine.skipped == engine.statistics()["skipped"] == 1
    again = TorchEngine(config, saved=save_step(run_in(tmp_path, config), engine, 3))
    for one in (engine, again):
        after(one, {3: made[3], 4: made[4]})
        assert one.skipped == 1
        assert_equal(state_of(one), state_of(without))


def test_after_one_skipped_update_too_many_nothing_changes() -> None:
    engine = TorchEngine(CONFIG.replace(skippable=1))
    made = batches()
    bad = made[0]._replace(targets_BC=made[0].targets_BC * np.nan)
    before = state_of(after(engine, {0: made[0], 1: bad}))
    result = engine.train_step(bad, 2)
    assert result.invalid(engine.trained, CONFIG.loss_limit)[0] == "loss"
    assert engine.skipped == 2
    assert engine.statistics()["skipped"] == 1, "the state before it, from which a run may resume"
    assert_equal(state_of(after(engine, {3: made[3]})), before)


def test_rows_of_a_process() -> None:
    engine = TorchEngine(CONFIG)
    np.testing.assert_array_equal(engine.rows(16), np.arange(16))
    engine.process, engine.processes = 1, 3
    np.testing.assert_array_equal(engine.rows(12), np.arange(4, 8))
    with pytest.raises(InputError, match="batch_size: 16 cannot be shared by 3 processes; make it a multiple"):
        engine.rows(16)


def test_meshes_that_pytorch_cannot_use_are_refused() -> None:
    two = replace(join(), count=2)
    assert join() == Processes(0, 1, two.device)
    for mesh in (Mesh(tensor=2), Mesh(data=1, tensor=-1)):
        with pytest.raises(InputError, match=r"mesh\.tensor: 2, but PyTorch shares by data and fsdp"):
            resolve_mesh(CONFIG.replace(mesh=mesh), two)
    cut = CONFIG.replace(mesh=Mesh(fsdp=2))
    assert resolve_mesh(cut, two).axes == {"data": 1, "fsdp": 2, "tensor": 1}
    with pytest.raises(InputError, match="needs a multiple of 2 devices, there are 1"):
        TorchEngine(cut)


@pytest.mark.parametrize(("chosen", "compiled"), [(None, 0), (False, 0), (True, CONFIG.model.depth)])
def test_blocks_are_compiled_where_it_is_chosen(
    chosen: bool | None, compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default on CUDA devices, which are not here; a teacher's as the student's."""
    calls: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: calls.append(module))
    shape = CheckpointConfig(model=CONFIG.model, preprocessing=CONFIG.preprocessing)
    teacher = Checkpoint.of(shape, parity.randomized(CONFIG.model, 0))
    engine = TorchEngine(CONFIG.replace(compile=chosen), teacher=teacher)
    assert engine.teacher is not None
    assert calls == [
        block for network in (engine.network, engine.teacher) for block in list(network.model.blocks)[:compiled]
    ]


@pytest.mark.slow
def test_compiled_blocks_train_the_same() -> None:
    """One graph for all blocks, with stochastic depth's masks. The compiler may reorder sums: the bound is that of two
    frameworks. (It gave equal bits.)"""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = EXACT.replace(model=EXACT.model.replace(stochastic_depth=0.3))
    steps = dict(enumerate(batches(config)[:4]))
    plain, compiled = (state_of(after(TorchEngine(config.replace(compile=how)), steps)) for how in (False, True))
    for name, x in plain.items():
        assert np.abs(compiled[name] - x).max() <= parity.FLOAT64_BOUND * max(np.abs(x).max(), 1e-3), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def everything(optimizer: Any, moments: Any = None) -> TrainConfig:
    """A run with all that an update has to do."""
    return CONFIG.replace(
        accumulation=2,
        ema=0.9,
        ema_warmup=True,
        compute_dtype="bfloat16",
        model=CONFIG.model.replace(stochastic_depth=0.3, dropout=0.1),
        optimizer=CONFIG.optimizer.replace(name=optimizer, clip_norm=1.0, weight_decay=0.1, moment_dtype=moments),
        augmentation=CONFIG.augmentation.replace(mixup=0.2, cutmix=1.0),
    )


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", None), ("adamw", "bfloat16"), ("muon", None)])
def test_the_host_does_not_wait_for_a_step(optimizer: Any, moments: Any) -> None:
    """The check of a step is its caller's, one step later. (This is the structure only: seen on a processor.)"""
    config = everything(optimizer, moments)
    engine, made = TorchEngine(config), batches(config)
    with NeverWaiting():
        results = [engine.train_step(batch, step) for step, batch in enumerate(made[:2])]
    assert all(0 < float(result.loss) < 10 and result.gradient_norm > 0 for result in results)
    assert [int(result.stop_requests) for result in results] == [0, 0]
    with pytest.raises(AssertionError, match="the host waits"), NeverWaiting():
        float(engine.skipped_updates)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA devices record graphs")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_recorded_step_is_the_step(optimizer: Any, tmp_path: Path) -> None:
    """Replayed from the fourth step on; the fifth is skipped. A run that resumes goes on with steps as they are."""
    config = everything(optimizer).replace(skippable=1)
    made = dict(enumerate(batches(config)))
    made[4] = made[4]._replace(targets_BC=made[4].targets_BC * np.nan)
    recorded, as_it_is = TorchEngine(config), TorchEngine(config)
    as_it_is.recorded = None
    first = {step: made.pop(step) for step in range(4)}
    assert_equal(state_of(after(recorded, first)), state_of(after(as_it_is, first)))
    again = TorchEngine(config, saved=save_step(run_in(tmp_path, config), recorded, 4))
    for engine in (recorded, again):
        assert_equal(state_of(after(engine, made)), state_of(after(as_it_is, made) if engine is recorded else as_it_is))
    assert recorded.recorded is not None
    assert recorded.recorded.graph is not None
    assert recorded.skipped == 1
    assert torch.get_num_threads() == 1


def test_what_is_recorded() -> None:
    """Nothing on a processor."""
    engine = TorchEngine(CONFIG.replace(compile=True))
    assert (engine.recorded is None) == (engine.device.type == "cpu")
    assert may_be_recorded(CONFIG, processes=1)
    assert not may_be_recorded(CONFIG, processes=2)
    low = CONFIG.optimizer.replace(moment_dtype="bfloat16")
    sizes = {"patch_sizes": (CONFIG.model.patch_size[0], 2 * CONFIG.model.patch_size[0])}
    for changes in ({"remat": "dots"}, {"optimizer": low}, {"mesh": Mesh(fsdp=2)}, sizes):
        assert not may_be_recorded(CONFIG.replace(**changes), processes=1), changes


@pytest.mark.parametrize("fails", [False, True])
def test_after_three_calls_an_update_is_recorded_and_replayed(
    fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With stand-ins for CUDA: what is called, and in which memory the arguments of a replay are."""
    calls: list[str] = []
    replayed = SimpleNamespace(replay=lambda: calls.append("replay"))
    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def recording(*_: Any, **__: Any) -> Iterator[None]:
        calls.append("record")
        yield
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")

    stand_ins = {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": lambda: replayed}
    for name, stand_in in {**stand_ins, "stream": lambda _: nullcontext(), "graph": recording}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def update(numbers: torch.Tensor, parts: Any) -> torch.Tensor:
        calls.append("update")
        return 2 * numbers

    recorded, part = RecordedUpdate(), batches()[0]
    part = part._replace(**{name: torch.zeros(2) for name in part._fields[:5]}, masks={"site": torch.zeros(2)})
    for i in range(6):
        one = part._replace(masks={"site": torch.full((2,), float(i))})
        recorded(update, torch.tensor([float(i)]), [one])
    if fails:
        assert calls == ["update"] * 3 + ["record", "update"] + ["update"] * 3
        assert [record.getMessage() for record in caplog.records] == [
            "the train step cannot be recorded as a CUDA graph, so that the host takes longer: operation not permitted "
            "when stream is capturing"
        ]
        return
    assert calls == ["update"] * 3 + ["record", "update"] + ["replay"] * 3
    assert [x.tolist() for x in recorded.inputs] == [[5.0], *[[0.0, 0.0]] * 5, [5.0, 5.0]]
    with pytest.raises(AssertionError):
        recorded(update, torch.tensor(6.0), [part])


def test_images_are_normalized_from_constants_on_the_device() -> None:
    """They are no part of what is saved, and follow the network to its device."""
    engine = TorchEngine(CONFIG)
    offset, scale = offset_and_scale(CONFIG.preprocessing)
    np.testing.assert_array_equal(engine.network.offset.numpy(), offset)
    np.testing.assert_array_equal(engine.network.scale.numpy(), scale)
    assert not {"offset", "scale"} & engine.network.state_dict().keys()
    assert engine.network.to("meta").offset.device.type == "meta"
