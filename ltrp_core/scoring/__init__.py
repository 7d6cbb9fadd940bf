"""Scores of patches by a frozen autoencoder: leave-one-out (Eq. 2), and surprise (ours).

`leave_one_out` scores the visible patches of a partition, `surprise` the masked ones; `blocks` has
the passes that both are made of, `cost` what they cost.
"""

from __future__ import annotations

from ltrp_core.distances import DISTANCES
from ltrp_core.partitions import Scored
from ltrp_core.scoring.blocks import default_chunk
from ltrp_core.scoring.leave_one_out import (
    PHASES,
    REGIONS,
    Phase,
    Region,
    leave_one_out_scores,
)
from ltrp_core.scoring.surprise import surprise_scores

__all__ = [
    "PHASES",
    "REGIONS",
    "SURPRISE",
    "Phase",
    "Region",
    "default_chunk",
    "leave_one_out_scores",
    "metric_names",
    "scored_by",
    "surprise_scores",
]

SURPRISE = "surprise"


def metric_names() -> tuple[str, ...]:
    """Returns what a score may be: a distance between reconstructions, or surprise."""
    return (*DISTANCES, SURPRISE)


def scored_by(metric: str) -> Scored:
    """Returns which patches of a partition a metric scores."""
    return "masked" if metric == SURPRISE else "visible"
