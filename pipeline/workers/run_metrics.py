"""What a run shows on Ray's own Prometheus exporter; nothing where Ray does not run.

The exporter of the driver's machine serves them with the prefix `ray_`, e.g.
`ray_ltrp_units_done_total{stage="score",run_id="..."}`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_TAGS = ("stage", "run_id")
PARTS = ("read", "decode", "model", "write")


class RunMetrics:
    """Counters of one run of one stage, in the driver."""

    def __init__(self, stage: str, run_id: str) -> None:
        self._tags = {"stage": stage, "run_id": run_id}
        self._counters: dict[str, Any] | None = None

    def done(self, n_ok: int, n_bad: int, seconds: Mapping[str, float]) -> None:
        """A unit is committed; `seconds` by part, those of `PARTS` are counted."""
        self._add("ltrp_units_done_total", 1)
        self._add("ltrp_images_total", n_ok, outcome="ok")
        self._add("ltrp_images_total", n_bad, outcome="bad")
        for part in PARTS:
            self._add("ltrp_stage_seconds_total", seconds.get(part, 0.0), part=part)

    def failed(self) -> None:
        """A unit was given up."""
        self._add("ltrp_units_failed_total", 1)

    def _add(self, name: str, value: float, **tags: str) -> None:
        counters = self._open()
        if counters and value > 0:  # Ray refuses an increment by zero
            counters[name].inc(value, tags={**self._tags, **tags})

    def _open(self) -> dict[str, Any]:
        """Makes the counters with the first value: Ray starts with the first item."""
        if self._counters is None:
            ray = sys.modules.get("ray")  # not imported for this: a run of one process has none
            if ray is None or not ray.is_initialized():
                return {}
            self._counters = _counters()
        return self._counters


def _counters() -> dict[str, Any]:
    from ray.util.metrics import Counter

    described = {
        "ltrp_units_done_total": ("Units (shards) committed.", ()),
        "ltrp_units_failed_total": ("Units given up after all attempts.", ()),
        "ltrp_images_total": ("Images of committed units.", ("outcome",)),
        "ltrp_stage_seconds_total": ("Seconds of the workers, by part of the work.", ("part",)),
    }
    return {
        name: Counter(name, description=text, tag_keys=(*_TAGS, *more))
        for name, (text, more) in described.items()
    }
