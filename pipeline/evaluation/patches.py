"""Runs `evaluate patches`: selections and annotations in, tables and figures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.annotations import open_annotations
from pipeline.annotations.categories import arguable_names
from pipeline.evaluation.count_cache import FOLDER, FileCountCache
from pipeline.evaluation.figures import write_figures
from pipeline.evaluation.selections import open_selections
from pipeline.evaluation.tables import write_tables
from pipeline.store.kinds import open_cache_of
from stages import evaluate_patches
from stages.evaluation.rows import EvaluationRow
from stages.protocols import Progress, Summary


def run_evaluate_patches(
    config: evaluate_patches.EvaluateConfig,
    *,
    selections: Sequence[str | Path],
    annotations: Path,
    teacher: str | Path | None,
    foreground: str,
    out: Path,
    progress: Progress,
    labels: Sequence[str] = (),
    format: str = "auto",
) -> tuple[list[EvaluationRow], Summary]:
    """Evaluates selections against annotations; writes tables and figures into `out`."""
    selected = open_selections(selections, labels)
    source = open_annotations(annotations, format=format, shape=foreground)
    cached = FileCountCache(out / FOLDER, next(iter(selected.values())), source)
    evaluation, summary = evaluate_patches.run(
        config,
        selections=selected,
        annotations=source,
        teacher=open_cache_of("--teacher", teacher, "score") if teacher is not None else None,
        progress=progress,
        cached=cached,
    )
    summary.notes += source.notes
    write_tables(out, evaluation)
    write_figures(out, evaluation.rows)
    if cached.hits:
        summary.notes.append(f"took the counts of {cached.hits} unit(s) from {out / FOLDER}")
    if "unseen" in config.categories:
        names = ", ".join(arguable_names(source.categories))
        summary.notes.append(
            f"unseen counts {names}, of which one may argue; --categories unseen-strict does not"
        )
    summary.output = str(out)
    return evaluation.rows, summary
