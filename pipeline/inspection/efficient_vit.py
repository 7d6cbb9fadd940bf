"""What a ranker before a classifier saves: operations, and images a second (Tab. 2).

The paper counts the classifier on the kept patches alone; here the ranker stands beside it, and
both are timed as one module, on the same kernels, each side at the batch at which it is fastest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ltrp_core.errors import RequestError, unknown_name
from ltrp_core.kept_tokens import square_token_grid
from ltrp_core.linear import frozen_weights, use_fast_linears
from ltrp_core.operations import ranker_multiply_adds, transformer_multiply_adds
from ltrp_core.precision import float32_kept
from ltrp_core.rankers import RANKERS, Ranker, create_ranker, load_ranker
from ltrp_core.selection import num_kept
from ltrp_core.selector import LTRPSelector, SelectedPatches
from ltrp_core.weight_sources import TIMM
from pipeline.evaluation.text_tables import aligned, markdown, write_rows
from pipeline.files import replace_text
from pipeline.plots import INK, Theme, dress, write_plot
from stages.options import check_ranges, option
from stages.protocols import Progress

NAME = "benchmark_vit"
_MILLION, _BILLION = 1e6, 1e9
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ENOUGH = 0.98
"""A larger batch must be faster than this share of the best one to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkVitConfig:
    """Options of `benchmark-vit`."""

    model: tuple[str, ...] = option(
        ("timm:vit_base_patch16_224",), help="timm:NAME of a vision transformer; may be repeated"
    )
    ranker: tuple[str, ...] = option(
        ("vit_tiny",),
        help=f"{', '.join(RANKERS)} (untrained), ranker_tiny, or a folder of `train-ranker`; may "
        "be repeated",
    )
    keep_ratio: tuple[float, ...] = option(
        (0.75, 0.5), low=0.0, high=1.0, help="share of kept patches; may be repeated"
    )
    homogeneous: float = option(
        0.2, low=0.0, high=1.0, help="share of the kept from homogeneous regions (Tab. 1e)"
    )
    count_only: bool = option(False, help="count operations; time nothing")
    rounds: int = option(5, low=1, help="both sides are timed this often, in turns; medians count")
    max_batch: int = option(32, low=1, help="largest batch that is tried")
    device: str = option("cpu", help="cpu, cuda, cuda:1, ...")
    threads: int = option(0, low=0, help="torch's; 0: as many as it takes by itself")

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.model:
            if not timm.is_model(name.removeprefix(TIMM).partition(".")[0]):
                raise unknown_name("model of timm", name.removeprefix(TIMM), timm.list_models())


@dataclass(frozen=True, kw_only=True, slots=True)
class VitRow:
    """One transformer, alone or behind a ranker at a keep ratio."""

    model: str
    ranker: str
    """Empty: none, and all patches"""
    keep_ratio: float
    kept: int
    parameters: int
    """Of both"""
    classifier_gmac: float
    """Multiply-adds of the classifier alone, in 1e9, an image: the paper's column"""
    ranker_gmac: float
    saved: float
    """How many times fewer multiply-adds than the transformer alone, the ranker included"""
    batch: int = 0
    """At which it was fastest; 0: not timed"""
    images_per_second: float = 0.0
    speedup: float = 0.0
    """Of the transformer alone, both in one run"""


def benchmark(config: BenchmarkVitConfig, progress: Progress) -> list[VitRow]:
    """Returns a row for every transformer alone and behind every ranker, at every keep ratio.

    Raises:
        CheckpointError: a ranker cannot be loaded.
        RequestError: a model that cannot be given some patches, or a keep ratio out of range.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    rows = []
    count = len(config.model) * (1 + len(config.ranker) * len(config.keep_ratio))
    with progress.task("benchmark-vit", count, "models") as bar:
        for name in config.model:
            for row in _of_model(name, config):
                rows.append(row)
                bar.advance(1)
    return rows


def _of_model(name: str, config: BenchmarkVitConfig) -> Iterator[VitRow]:
    """Yields the rows of one transformer."""
    # What is only counted needs no weights: those of ViT-H take longer to draw than to count.
    with torch.device("meta" if config.count_only else "cpu"):
        vit = timm.create_model(name.removeprefix(TIMM)).eval()
    sizes = square_token_grid(vit)
    assert isinstance(vit, VisionTransformer)
    grid, patch = sizes.grid[0], sizes.patch[0]
    length = grid * grid
    keeps = {ratio: num_kept(ratio, length) for ratio in config.keep_ratio}
    counts = {k: transformer_multiply_adds(vit, k) for k in {length, *keeps.values()}}
    alone = counts[length]
    use_fast_linears(vit)
    timed = None if config.count_only else _Timed(vit.to(config.device), config, grid * patch)
    yield _row(name, vit, length=length, classifier=alone, alone=alone, timed=timed)
    for ranker_name in config.ranker:
        ranker = _ranker(ranker_name, grid, patch)
        own = ranker_multiply_adds(ranker)
        selector = LTRPSelector(ranker.to(config.device), config.homogeneous)
        for ratio, keep in keeps.items():
            yield _row(
                name,
                SelectedPatches(vit, selector, keep).eval(),
                ranker=ranker_name,
                ratio=ratio,
                kept=keep,
                length=length,
                classifier=counts[keep],
                own=own,
                alone=alone,
                timed=timed,
            )


def _ranker(name: str, grid: int, patch: int) -> Ranker:
    if name in RANKERS:
        return create_ranker(name, grid=grid, patch_size=patch).eval()
    ranker = load_ranker(name, grid=grid).eval()
    if ranker.patch_size != patch:
        raise RequestError(
            f"--ranker {name} has patches of {ranker.patch_size} px, the transformer of {patch}; "
            "take both of one size"
        )
    return ranker


class _Timed:
    """Times modules against the transformer alone."""

    def __init__(self, vit: torch.nn.Module, config: BenchmarkVitConfig, side: int) -> None:
        self.config, self.side, self.vit = config, side, vit
        self.batch, _ = self._fastest(vit)

    def against_alone(self, module: torch.nn.Module) -> tuple[int, float, float]:
        """Returns the batch of a module, its images a second, and the speed-up, medians."""
        module.to(self.config.device)
        batch = self.batch if module is self.vit else self._fastest(module)[0]
        rates: list[float] = []
        ratios: list[float] = []
        for _ in range(self.config.rounds):
            own = self._rate(module, batch)
            rates.append(own)
            ratios.append(1.0 if module is self.vit else own / self._rate(self.vit, self.batch))
        return batch, statistics.median(rates), statistics.median(ratios)

    def _fastest(self, module: torch.nn.Module) -> tuple[int, float]:
        best = (1, 0.0)
        for batch in (size for size in _BATCHES if size <= self.config.max_batch):
            self._rate(module, batch)
            rate = self._rate(module, batch)
            if rate > best[1]:
                best = (batch, rate)
            elif rate < _ENOUGH * best[1]:
                break
        return best

    @torch.no_grad()
    def _rate(self, module: Callable[[Tensor], Tensor], batch: int) -> float:
        device = torch.device(self.config.device)
        images = torch.randn(batch, 3, self.side, self.side, device=device)
        # CPU seconds of this process: what else runs on the machine is not counted.
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        with frozen_weights(), float32_kept():
            module(images[:1])
            _wait(device)
            started = clock()
            module(images)
            _wait(device)
        return batch / (clock() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(
    name: str,
    module: torch.nn.Module,
    *,
    length: int,
    classifier: int,
    alone: int,
    timed: _Timed | None,
    ranker: str = "",
    ratio: float = 1.0,
    kept: int = 0,
    own: int = 0,
) -> VitRow:
    batch, rate, speedup = (0, 0.0, 0.0) if timed is None else timed.against_alone(module)
    return VitRow(
        model=name.removeprefix(TIMM),
        ranker=ranker,
        keep_ratio=ratio,
        kept=kept or length,
        parameters=sum(p.numel() for p in module.parameters()),
        classifier_gmac=classifier / _BILLION,
        ranker_gmac=own / _BILLION,
        saved=alone / (classifier + own),
        batch=batch,
        images_per_second=rate,
        speedup=speedup,
    )


def cells(rows: Sequence[VitRow]) -> list[list[str]]:
    """Returns the table as text, its head first."""
    timed = any(row.batch for row in rows)
    head = ["model", "ranker", "kept", "params (M)", "GMAC", "of the ranker", "fewer in all"]
    lines = [head + (["batch", "images/s", "speed-up"] if timed else [])]
    for row in rows:
        line = [
            row.model,
            row.ranker or "-",
            f"{row.keep_ratio:g} ({row.kept})",
            f"{row.parameters / _MILLION:.1f}",
            f"{row.classifier_gmac:.2f}",
            f"{row.ranker_gmac:.2f}" if row.ranker else "-",
            f"{row.saved:.3f}",
        ]
        if timed:
            line += [str(row.batch), f"{row.images_per_second:.2f}", f"{row.speedup:.3f}"]
        lines.append(line)
    return lines


def write(rows: Sequence[VitRow], out: Path) -> str:
    """Writes the table as text, Markdown, CSV and Parquet, and a plot if it was timed.

    Returns:
        The table as text.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = cells(rows)
    text = "\n".join(aligned(lines)) + "\n"
    replace_text(out / f"{NAME}.txt", text)
    replace_text(out / f"{NAME}.md", markdown(lines) + "\n")
    write_rows(out / NAME, [asdict(row) for row in rows])
    if any(row.batch for row in rows):
        _plot(rows, out / NAME)
    return text


def _plot(rows: Sequence[VitRow], stem: Path) -> None:
    def paint(axes: Any, theme: Theme) -> None:
        for model in dict.fromkeys(row.model for row in rows):
            own = sorted((r for r in rows if r.model == model), key=lambda r: r.keep_ratio)
            total = [row.classifier_gmac + row.ranker_gmac for row in own]
            axes.plot(total, [row.images_per_second for row in own], "o-", label=model)
        axes.set_ylabel("images/s", color=INK[theme])
        dress(axes, theme, "GMAC an image, the ranker included")
        axes.legend(frameon=False, labelcolor=INK[theme])

    write_plot(
        stem,
        paint,
        title="Images a second by operations",
        alt="Images a second by multiply-adds, each transformer alone and behind its rankers",
    )
