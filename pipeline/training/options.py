"""Options of training runs that change no number."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.training.loggers import LogTo
from stages.options import check_ranges, option


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRunOptions:
    """Options of every training run."""

    checkpoint_every: float = option(
        60.0, low=0.0, help="seconds between checkpoints: what a kill costs at most",
        changes_numbers=False,
    )  # fmt: skip
    loader_processes: int = option(
        -1, low=-1, help="processes that read and decode ahead; -1: as many as pay",
        changes_numbers=False,
    )  # fmt: skip
    scratch: str = option(
        "", help="folder for what is brought near; empty: in or beside --out. A local disk is best",
        changes_numbers=False,
    )  # fmt: skip

    log_to: LogTo = option(
        "tensorboard", help="tensorboard: in OUT/tensorboard; mlflow: there and to MLflow, whose "
        "own variables (MLFLOW_TRACKING_URI, ...) say where", changes_numbers=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions(TrainingRunOptions):
    """Options of a run of `train-ranker`."""

    render_once: float = option(
        2.0, low=0.0, changes_numbers=False,
        help="GiB that all views may take to be rendered once, not each time they are seen",
    )  # fmt: skip
