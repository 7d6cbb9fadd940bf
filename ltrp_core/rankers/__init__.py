"""Ranking models: images in, one score per patch out. Start at `create_ranker` or `load_ranker`."""

from ltrp_core.rankers.folder import (
    RANKERS,
    create_ranker,
    describe_ranker,
    load_ranker,
    locate_ranker,
    read_config,
    save_ranker,
)
from ltrp_core.rankers.grid import fit_to_grid
from ltrp_core.rankers.init import InitReport, initialize_ranker
from ltrp_core.rankers.models import Head, Input, Ranker

__all__ = [
    "RANKERS",
    "Head",
    "InitReport",
    "Input",
    "Ranker",
    "create_ranker",
    "describe_ranker",
    "fit_to_grid",
    "initialize_ranker",
    "load_ranker",
    "locate_ranker",
    "read_config",
    "save_ranker",
]
