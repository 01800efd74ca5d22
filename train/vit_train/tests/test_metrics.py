"""Metrics of a run that resumes: lines, TensorBoard's curves, and speed."""

import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode

import vit_torch
from vit_train.engines.torch import peak as torch_peak
from vit_train.matmul_peak import measured_flops
from vit_train.metrics import Metrics, read_metrics
from vit_train.tests.small_run import CONFIG, ENGINES
from vit_train.throughput import Throughput


def test_metrics_beyond_the_resumed_step_are_removed(tmp_path: Path) -> None:
    """Lines, and TensorBoard's curves as TensorBoard reads them."""
    with Metrics(tmp_path, 0) as first:
        for step in range(1, 8):
            first.write(step, loss=float(step), engine="jax")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    with Metrics(tmp_path, 4) as again:
        again.write(5, loss=50.0, engine="torch")
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


def test_speed_between_two_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of 0.5 s, a quarter of it waiting; what is spent on saving does not count. FLOPs by PyTorch's counter,
    which has a formula for attention that is spelled out."""
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    with FlopCounterMode(display=False) as counter:
        vit_torch.ViT(CONFIG.model, attention="plain")(torch.zeros(1, CONFIG.model.channels, *CONFIG.model.image_size))
    total = counter.get_total_flops()
    taught = Throughput(CONFIG, peak=1e9, teacher=5 * total)
    throughput = Throughput(CONFIG, peak=1e9)
    assert taught.step_flops == (3 + 5) * total * CONFIG.batch_size
    for _ in range(2):
        for _ in range(4):
            with throughput.waiting():
                now += 0.125
            now += 0.375
        with throughput.paused():
            now += 60
        values = throughput.values()
        assert values["step_seconds"] == 0.5
        assert values["data_wait"] == 0.25
        assert values["images_per_second"] == 2 * CONFIG.batch_size
        assert values["mfu"] == round(3 * total * CONFIG.batch_size / 0.5 / 1e9, 4) > 0
    assert values["seconds"] == 2 * (4 * 0.5 + 60)


def test_a_device_cannot_do_more_than_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training at twice the measured peak shows that the measurement was slowed: what it reaches is then the peak."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    throughput = Throughput(CONFIG, peak=1.0)
    throughput.peak = throughput.step_flops / 2  # one step in two seconds
    found = []
    for seconds in (4, 1, 2):
        with throughput.waiting():
            now += seconds
        found.append(throughput.values()["mfu"])
    assert found == [0.5, 1.0, 0.5]


def test_slow_first_products_do_not_decide_about_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 400 GFLOP/s at the largest size and half of it at smaller ones, whose first five products are
    interrupted for 10 ms by another program; and a slow device, on which only the smallest size is tried."""
    now, calls, sizes = 0.0, 0, []
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def square_of(matrix: np.ndarray, speed: float = 4e11) -> Callable[[], None]:
        n = len(matrix)
        sizes.append(n)

        def multiply() -> None:
            nonlocal now, calls
            calls += 1
            now += 2 * n**3 / (speed if n == 1024 else speed / 2) + (0.01 if calls <= 5 else 0)

        return multiply

    assert measured_flops(square_of, largest=1024) == pytest.approx(4e11, rel=1e-9)  # the clock's sums are rounded
    assert (sizes, now < 0.3) == ([256, 512, 1024], True)
    before = now
    assert measured_flops(lambda matrix: square_of(matrix, 1e10), 1024) == pytest.approx(5e9, rel=1e-9)
    assert (sizes[3:], now - before < 0.3) == ([256], True)


def test_measuring_the_peak_keeps_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch_peak.matmul_flops("float32", torch.device("cpu")) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ENGINES)
def test_the_peak_is_that_of_this_machine(name: str) -> None:
    """NumPy multiplies with another library; both speeds agree within a factor of 20, also on a busy machine."""
    peak = ENGINES[name](CONFIG.replace(dtype="float32")).peak_flops
    a = np.ones((512, 512), np.float32)
    seconds = min(timeit.repeat(lambda: a @ a, number=1, repeat=20))
    assert 0.05 < peak / (2 * 512**3 / seconds) < 20


def test_a_device_that_waits_for_images_is_mentioned_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vit")

    def mentioned(waits: list[float], hardware: str, cores: int | None) -> list[str]:
        caplog.clear()
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        throughput = Throughput(CONFIG.replace(workers=2), peak=1e9)
        for wait in waits:
            throughput.mention_wait(wait, hardware)
        return [record.getMessage() for record in caplog.records]

    assert mentioned([0.9, 0.6, 0.7], "1 x NVIDIA H100", 16) == [
        "the device waits for images 60% of the time; resume the run with --workers 14 (processes that make batches; "
        "now 2)"
    ]
    assert mentioned([0.9, 0.6], "4 x TPU v4", 240)[0].count("--workers 32 ")
    assert mentioned([0.9, 0.3, 0.9], "1 x NVIDIA H100", 16) == []
    for hardware, cores in (("1 x cpu", 16), ("1 x NVIDIA H100", 4), ("1 x NVIDIA H100", None)):
        assert mentioned([0.9, 0.9], hardware, cores) == []
