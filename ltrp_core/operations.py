"""Operations of a model, counted by torch's formulas; of a transformer nothing is computed.

A multiply-add is one; torch counts it as two. What is no product of its list (norms, softmax,
sorting, copying) is not counted, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ltrp_core import linear
from ltrp_core.kept_tokens import kept_output, token_grid
from ltrp_core.rankers import Ranker


def multiply_adds(run: Callable[[], object]) -> int:
    """Returns the multiply-adds of a call, whatever device it computes on.

    Unlike torch's own counter it does not follow modules: gradients by features may be asked for.
    """
    with _only_torchs_products(), _Counter() as counter:
        run()
    return counter.total // 2


def transformer_multiply_adds(vit: VisionTransformer, keep: int) -> int:
    """Returns the multiply-adds of a transformer of timm's that is given k patches of one image.

    Args:
        vit: in evaluation mode; nothing is computed, so it may be on the device `meta`.
        keep: k, 1 to L. L: the transformer alone.

    Raises:
        RequestError: it cannot be given some patches only.
    """
    (rows, columns), (height, width) = token_grid(vit)
    with FakeTensorMode(allow_non_fake_inputs=True):
        place = next(vit.parameters()).device
        images = torch.empty(1, 3, rows * height, columns * width, device=place)
        if keep == rows * columns:
            return multiply_adds(lambda: vit(images))
        kept = torch.empty(1, keep, dtype=torch.int64, device=place)
        return multiply_adds(lambda: kept_output(vit, images, kept))


def ranker_multiply_adds(ranker: Ranker) -> int:
    """Returns the multiply-adds of a ranker that scores all patches of one image."""
    side = ranker.grid * ranker.patch_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(1, 3, side, side)
        return multiply_adds(lambda: ranker(images))


@contextmanager
def _only_torchs_products() -> Iterator[None]:
    """Within it products are torch's own: its formulas do not know oneDNN's."""
    ours = linear._ONEDNN
    linear._ONEDNN = None
    try:
        yield
    finally:
        linear._ONEDNN = ours


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.total += int(count(*args, **(kwargs or {}), out_val=found))
        return found
