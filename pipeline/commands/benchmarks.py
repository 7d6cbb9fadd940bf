"""The command that times models beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.options import config_options, out_option
from pipeline.console.progress import open_progress
from pipeline.console.terminal import say
from pipeline.inspection.efficient_vit import BenchmarkVitConfig, benchmark, write


@click.command("benchmark-vit")
@out_option("benchmark-vit")
@config_options(BenchmarkVitConfig)
def benchmark_vit(out: Path, **options: Any) -> int:
    """Count and time vision transformers with a ranker.

    Tab. 2: each alone and with it. Weights are untrained: they do not change the work.
    Multiply-adds are counted by torch's formulas; the column `fewer in all` has the ranker in it,
    which the paper leaves out. Both sides are timed in turns, each at its fastest batch. Prints the
    table; writes it as text, Markdown, CSV and Parquet, with a figure.

    Example: ltrp-pipeline benchmark-vit --model timm:vit_large_patch16_224 --count-only
    """
    rows = benchmark(BenchmarkVitConfig(**options), open_progress())
    say(write(rows, out), nl=False)
    return 0
