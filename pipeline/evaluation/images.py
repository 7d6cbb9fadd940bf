"""Runs `evaluate images`: selections, shards and their labels in, tables and figures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.image_tables import write_image_tables
from pipeline.evaluation.selections import open_selections
from pipeline.inputs import Shard
from pipeline.labels import open_labels
from pipeline.store.cache import Cache
from pipeline.store.replay import match_shards, replay_views
from stages import evaluate_images
from stages.evaluation.image_rows import ImageRow
from stages.protocols import Arrays, Progress, Summary


class ReplayedViews:
    """The views of a cache, rendered from its shards again."""

    def __init__(self, cache: Cache, shards: Sequence[Shard]) -> None:
        """Finds the shard of every unit.

        Raises:
            RequestError: one is missing or of another size.
        """
        self._cache, self._shards = cache, match_shards(cache, shards)

    def pixels(self, unit: str, arrays: Arrays) -> NDArray[np.uint8]:
        """Returns the first view of each of the N images of a unit, (N, 3, S, S).

        Raises:
            RequestError: its shard is not the one that was selected from; names an image.
        """
        views = replay_views(self._cache, unit, arrays, self._shards[unit])
        first: NDArray[np.uint8] = views[:, 0]
        return first


def run_evaluate_images(
    config: evaluate_images.EvaluateImagesConfig,
    *,
    selections: Sequence[str | Path],
    shards: Sequence[Shard],
    out: Path,
    progress: Progress,
    labels: Sequence[str] = (),
) -> tuple[list[ImageRow], Summary]:
    """Shows a classifier what selections keep; writes tables and figures into `out`.

    Args:
        config: options.
        selections: --out folders of `select`.
        shards: that the first one was made from, with their labels.
        out: folder.
        progress: shows how far it is.
        labels: what tables call the selections.
    """
    selected = open_selections(selections, labels)
    first = next(iter(selected.values()))
    evaluation, summary = evaluate_images.run(
        config,
        selections=selected,
        views=ReplayedViews(first, shards),
        labels=open_labels(shards),
        progress=progress,
    )
    unusable = sum(first.rows[unit].n_bad for unit in first.units)
    if unusable:
        summary.notes.append(
            f"{unusable} member(s) of the shards hold no usable image: nothing was selected from "
            "them, and they are not measured"
        )
    write_image_tables(out, evaluation)
    summary.output = str(out)
    return evaluation.rows, summary
