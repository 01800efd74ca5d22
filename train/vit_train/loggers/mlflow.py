"""MLflow: files in the run's folder, or a server if MLFLOW_TRACKING_URI names one."""

import os
import time
from collections.abc import Mapping

from vit_train.loggers.interface import LoggedRun, one_line_errors

SERVICE, FOLDER, _ID = "mlflow", "mlruns", "mlflow.id"
_MOST_PARAMETERS, _LONGEST_VALUE = 100, 500
"""Limits of one request, in MLflow's interface."""


def is_online() -> bool:
    """Whether the environment names a server, a database or another folder."""
    return "MLFLOW_TRACKING_URI" in os.environ


class MLflow:
    """Logs to one run of MLflow, also after a resume. Values that MLflow already has are not sent again."""

    def __init__(self, run: LoggedRun) -> None:
        with one_line_errors(SERVICE):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            from mlflow import MlflowClient
            from mlflow.entities import Metric

            self._metric = Metric
            self._client = MlflowClient(None if is_online() else (run.folder / FOLDER).absolute().as_uri())
            self._run = self._identity(run)
            self._client.update_run(self._run, status="RUNNING")
            self._has = {
                name: max(point.step for point in self._client.get_metric_history(self._run, name))
                for name in self._client.get_run(self._run).data.metrics
            }

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the curves at a step, except values that the MLflow run already has."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if step > self._has.get(name, 0)}
        if new:
            with one_line_errors(SERVICE):
                self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in new.items()])

    def flush(self) -> None:
        """Does nothing: each value is sent immediately."""

    def close(self, complete: bool) -> None:
        """Sets the run's status."""
        with one_line_errors(SERVICE):
            self._client.set_terminated(self._run, "FINISHED" if complete else "FAILED")

    def _identity(self, run: LoggedRun) -> str:
        """The run's ID in MLflow, which is stored in its folder; a new run gets the config as parameters."""
        from mlflow.entities import Param

        file = run.run / _ID
        if file.is_file():
            return file.read_text().strip()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vit-parity")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        number = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        parameters = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in run.config.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(number, params=parameters[first : first + _MOST_PARAMETERS])
        file.write_text(number)
        return number
