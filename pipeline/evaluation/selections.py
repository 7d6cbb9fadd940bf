"""The selections that are compared, opened and named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltrp_core.errors import RequestError
from pipeline.store.cache import Cache
from pipeline.store.kinds import open_cache_of
from stages.evaluation.sources import name_selections
from stages.types import SelectRun


def open_selections(paths: Sequence[str | Path], labels: Sequence[str] = ()) -> dict[str, Cache]:
    """Returns the caches of `--selections` by their labels, in the order they were given.

    Raises:
        RequestError: none, one that is no selection, or labels that do not fit.
    """
    if not paths:
        raise RequestError("--selections is missing; pass the --out folder of `select`")
    caches = [open_cache_of("--selections", path, "select") for path in paths]
    runs = [SelectRun.of(cache.run, cache.url) for cache in caches]
    folders = [cache.url.rstrip("/").rsplit("/", 1)[-1] for cache in caches]
    return dict(zip(name_selections(runs, folders, labels), caches, strict=True))
