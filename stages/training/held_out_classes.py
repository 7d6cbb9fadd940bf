"""How often a classifier of kept patches is right on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ltrp_core.errors import RequestError
from ltrp_core.views import normalize
from stages.evaluation.image_rows import image_measures
from stages.training.ddp import Processes
from stages.training.labeled_views import LabeledViews, ViewMaker

TOP1, TOP5 = "accuracy_top1", "accuracy_top5"
_AT_A_TIME = 64
"""Constant: how products are summed up depends on the number of rows, and figures must not."""
_KEPT_BYTES = 1 << 30
"""Of views that a process keeps from epoch to epoch, with what was chosen of them"""

Choose = Callable[[Tensor, LabeledViews], Tensor | None]
"""From normalized images (b, 3, S, S) and their batch to the kept patches (b, k); None: all"""


@dataclass(slots=True)
class HeldOutClasses:
    """Views of labeled images, always the same ones; every image counts once."""

    views: ViewMaker
    rows: NDArray[np.int64]
    """(M,) numbers of the images, M > 0"""
    choose: Choose
    ranks: Processes
    processes: int = 0
    """That decode ahead"""
    _kept: list[LabeledViews] | None = field(default=None, init=False)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Returns shares and numbers of images whose class is the first, or one of the first five.

        `validation_loss` is the mean cross entropy, without smoothing, in nats; `validated` is M.
        The model is called with normalized images and kept patches.
        """
        model.eval()
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in self._batches(device):
            images = normalize(batch.pixels.to(device))
            kept = None if batch.kept is None else batch.kept.to(device)
            logits = model(images, kept).float().cpu()
            top = image_measures(logits, batch.label)[:, :2].sum(axis=0)
            loss = F.cross_entropy(logits.double(), batch.label, reduction="sum")
            sums += torch.tensor([*top.tolist(), float(loss)], dtype=torch.float64)
        first, five, loss_sum = self.ranks.all_reduce_sum(sums.to(device)).tolist()
        count = len(self.rows)
        return {
            TOP1: first / count,
            TOP5: five / count,
            "correct_top1": first,
            "correct_top5": five,
            "validated": float(count),
            "validation_loss": loss_sum / count,
        }

    def _batches(self, device: torch.device) -> Iterator[LabeledViews]:
        """Yields this rank's views, with what is kept of them."""
        if self._kept is not None:
            yield from self._kept
            return
        found: list[LabeledViews] = []
        num_bytes = 0
        for batch in self._made():
            if batch.kept is None:
                chosen = self.choose(normalize(batch.pixels.to(device)), batch)
                batch = batch._replace(kept=None if chosen is None else chosen.cpu())
            num_bytes += batch.pixels.nbytes
            if num_bytes <= _KEPT_BYTES:
                found.append(batch)
            else:
                found.clear()
            yield batch
        if num_bytes <= _KEPT_BYTES:
            self._kept = found

    def _made(self) -> Iterator[LabeledViews]:
        starts = range(0, len(self.rows), _AT_A_TIME)[self.ranks.rank :: self.ranks.size]
        parts = _Parts(self.views, [self.rows[start : start + _AT_A_TIME] for start in starts])
        ahead: dict[str, Any] = {}
        if self.processes:
            ahead = {"multiprocessing_context": "forkserver", "prefetch_factor": 4}
        loader = DataLoader(
            parts,
            batch_size=None,
            num_workers=self.processes,
            # Of its own: a loader draws from it, and training must not depend on loaders.
            generator=torch.Generator(),
            collate_fn=_as_it_is,
            **ahead,
        )
        for made in loader:
            if isinstance(made, RequestError):
                raise made
            yield made


@dataclass(frozen=True, slots=True)
class _Parts(Dataset[LabeledViews | RequestError]):
    views: ViewMaker
    rows: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> LabeledViews | RequestError:
        rows = self.rows[number].tolist()
        try:
            return self.views.batch(rows, [0] * len(rows))
        except RequestError as error:  # another process's would arrive as its traceback
            return error


def _as_it_is(made: Any) -> Any:
    return made
