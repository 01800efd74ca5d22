"""Weights & Biases and MLflow as their own files say, of runs that are killed and resumed; without a network."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from vit_core.errors import InputError
from vit_core.storage import StorePath
from vit_train.loggers import LoggerError, check_loggers
from vit_train.loggers.interface import LoggedRun
from vit_train.loggers.mlflow import MLflow
from vit_train.loggers.weights_and_biases import WeightsAndBiases
from vit_train.metrics import METRICS, Metrics

Series = dict[str, list[tuple[int, float]]]
"""Name of a value -> steps and values, in the order in which they were logged."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def mlflow_client(run: Path) -> Any:
    """MLflow's own reader of the runs that are logged in a folder."""
    from mlflow import MlflowClient  # two seconds, which all other tests would wait for

    return MlflowClient((run / "mlruns").as_uri())


def of_mlflow(run: Path) -> Series:
    """MLflow's values of the only run in a folder."""
    client = mlflow_client(run)
    experiment = client.get_experiment_by_name("vit-parity")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    number = found.info.run_id
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(number, name)]
        for name in found.data.metrics
    }


def of_wandb(run: Path) -> Series:
    """The values in all offline files of Weights & Biases in a run's folder, as `wandb sync` sends them."""
    series: Series = {}
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in complete(file):
            if record.HasField("history"):
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = row.pop("_step")
                for name, value in row.items():
                    if not name.startswith("_"):
                        series.setdefault(name, []).append((step, value))
    return series


def complete(file: Path) -> list[Record]:
    """The records of a .wandb file, once wandb's process has written the last one, just after the run has ended."""
    deadline = time.monotonic() + 60
    while not (found := list(records(file.read_bytes()))) or not found[-1].HasField("exit"):
        assert time.monotonic() < deadline, f"{len(found)} records"
        time.sleep(0.02)
    return found


def records(content: bytes) -> Iterator[Record]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind), then protobuf."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


READERS = {"mlflow": of_mlflow, "wandb": of_wandb}


def train(run: Path, start: int, end: int, logger: str, killed: bool = False) -> None:
    """Logs as a run does from a saved step to another one: a loss at each step, an accuracy at each third."""
    metrics = Metrics(run, start, (logger,), {"optimizer.name": "adamw", "steps": 9})
    for step in range(start + 1, end + 1):
        metrics.write(step, loss=1 / step, engine="jax")
        if step % 3 == 0:
            metrics.write(step, top1=step / 10, top1_interval=[0, 1])
    if killed and logger == "wandb":  # what is in the memory of wandb's process is lost
        (file,) = run.glob("wandb/offline-run-*/*.wandb")
        metrics.__exit__(None)
        complete(file)
        file.write_bytes(file.read_bytes()[:7])
    elif not killed:
        metrics.__exit__(None)


EXPECTED: Series = {
    "loss": [(step, 1 / step) for step in range(1, 10)],
    "top1": [(step, step / 10) for step in (3, 6, 9)],
}


@pytest.mark.parametrize("logger", ["mlflow", pytest.param("wandb", marks=pytest.mark.slow)])
def test_a_run_that_is_not_interrupted(tmp_path: Path, logger: str) -> None:
    train(tmp_path, 0, 9, logger)
    assert READERS[logger](tmp_path) == EXPECTED


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("logger", READERS)
def test_a_run_that_resumes_has_the_same_curves(tmp_path: Path, logger: str, killed: bool) -> None:
    """It was saved after step 4, and logged up to step 7."""
    train(tmp_path, 0, 7, logger, killed)
    train(tmp_path, 4, 9, logger)
    assert READERS[logger](tmp_path) == EXPECTED


@pytest.mark.parametrize("logger", READERS)
def test_a_logger_that_is_added_later_gets_everything(tmp_path: Path, logger: str) -> None:
    with Metrics(tmp_path, 0, ()) as metrics:
        for step in range(1, 5):
            metrics.write(step, loss=1 / step)
            if step == 3:
                metrics.write(step, top1=0.3)
    train(tmp_path, 4, 9, logger)
    assert READERS[logger](tmp_path) == EXPECTED


def test_what_was_sent_to_a_server_is_not_sent_again(tmp_path: Path) -> None:
    """`wandb sync` writes a marker file next to the file that it sends."""
    train(tmp_path, 0, 7, "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    file.with_name(f"{file.name}.synced").touch()
    train(tmp_path, 4, 9, "wandb")
    assert file.is_file()
    assert of_wandb(tmp_path) == EXPECTED


def test_the_config_is_shown(tmp_path: Path) -> None:
    for logger in READERS:
        train(tmp_path, 0, 1, logger)
    client = mlflow_client(tmp_path)
    run = client.get_run((tmp_path / "mlflow.id").read_text())
    assert run.data.params == {"optimizer.name": "adamw", "steps": "9"}
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    started = next(record.run for record in complete(file) if record.HasField("run"))
    assert {item.key: json.loads(item.value_json) for item in started.config.update if item.key != "_wandb"} == {
        "optimizer.name": "adamw",
        "steps": 9,
    }
    assert (started.display_name, started.project, started.run_id) == (
        tmp_path.name,
        "vit-parity",
        (tmp_path / "wandb.id").read_text(),
    )


def test_a_service_that_fails_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Metrics(tmp_path, 0, ("mlflow",)) as metrics:
        metrics.write(1, loss=1.0)
        shutil.rmtree(tmp_path / "mlruns")
        metrics.write(2, loss=0.5)
        metrics.write(3, loss=0.25)
    assert [record.message for record in caplog.records if record.name == "vit"] == [
        next(record.message for record in caplog.records if record.message.startswith("mlflow: "))
    ]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3


def test_what_cannot_be_used_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StorePath("gs", "bucket/run")
    with pytest.raises(InputError, match=r"^--loggers wandb: a run in a store .* its files; set WANDB_MODE=online$"):
        check_loggers(["wandb"], store)
    with pytest.raises(InputError, match=r"^--loggers mlflow: a run in a store .*; set MLFLOW_TRACKING_URI to the"):
        check_loggers(["mlflow"], store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_loggers(["mlflow"], store)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(LoggerError, match=r"^mlflow: .*127.0.0.1"):
        MLflow(LoggedRun(tmp_path, tmp_path, 0))
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "NETRC", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none") if name != "WANDB_API_KEY" else "")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(LoggerError, match=r"^wandb: No API key configured"):
        WeightsAndBiases(LoggedRun(tmp_path, tmp_path, 0))
    monkeypatch.setattr("vit_train.loggers.opening.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^--loggers wandb: wandb is not installed: pip install 'vit-parity\[wandb\]'$"
    ):
        check_loggers(["wandb"], tmp_path)
