"""Metrics of a run that resumes: lines, and TensorBoard's curves."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_train.metrics import Metrics, read_metrics


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
