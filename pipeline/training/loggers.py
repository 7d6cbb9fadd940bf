"""Where the values of a training go beside its TensorBoard log: MLflow, by its own client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ltrp_core.errors import RequestError
from pipeline.files import replace_text

LogTo = Literal["tensorboard", "mlflow"]
_RUN_FILE = "mlflow_run.txt"
_MOST_CHARACTERS = 6000
"""MLflow takes no longer parameter."""


class TrainingLogger(Protocol):
    """A second place for what TensorBoard is given."""

    def open(self, stage: str, identity: Mapping[str, Any]) -> None:
        """Begins, or goes on with, the log of a run."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds some values."""
        ...

    def close(self) -> None:
        """Ends the log."""
        ...


class MlflowLogger:
    """One MLflow run a training folder: killed and started again, it goes on in the same run.

    Server, experiment and credentials are MLflow's own settings: MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_TOKEN, ...

    Raises:
        RequestError: MLflow is not installed, or it is not said where its server is.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise RequestError(
                "--log-to mlflow needs MLflow: python -m pip install 'ltrp-pipeline[mlflow]'"
            ) from error
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # MLflow would make a database in the folder that each rank happens to be in.
            raise RequestError(
                "--log-to mlflow: set MLFLOW_TRACKING_URI to your server, e.g. http://host:5000"
            )
        self._mlflow: Any = mlflow
        self._file = folder / _RUN_FILE
        self._run_id = ""

    def open(self, stage: str, identity: Mapping[str, Any]) -> None:
        """Starts the run, or goes on with the one that the folder names."""
        if self._file.is_file():
            self._run_id = self._file.read_text().strip()
            self._mlflow.start_run(run_id=self._run_id)
            return
        run = self._mlflow.start_run(run_name=f"{stage} {self._file.parent.name}")
        self._run_id = run.info.run_id
        replace_text(self._file, f"{self._run_id}\n")
        parameters = {name: str(value)[:_MOST_CHARACTERS] for name, value in identity.items()}
        self._mlflow.log_params({"stage": stage, **parameters})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values; those of a step that is done again after a kill are added again."""
        self._mlflow.log_metrics(
            {name: float(value) for name, value in values.items()}, step=step, run_id=self._run_id
        )

    def close(self) -> None:
        """Ends the run; MLflow shows it as finished."""
        self._mlflow.end_run()


def open_logger(log_to: LogTo, folder: Path) -> TrainingLogger | None:
    """Returns the logger; None for TensorBoard alone, whose log is always written."""
    return MlflowLogger(folder) if log_to == "mlflow" else None
