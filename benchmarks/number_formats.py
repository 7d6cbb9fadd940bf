"""What the number format of matrix products leaves of the order of patches, simulated on any CPU.

    python benchmarks/number_formats.py --shards PHOTOS      # real photographs
    python benchmarks/number_formats.py --quick              # the demo's photographs

A product's operands are rounded to the format and multiplied in float32, as tensor cores add up;
where `torch.autocast` would return the format, the result is rounded, too. So this tells the order
without a GPU, and not the speed. `bf16` is computed for real as well where the CPU can: the two
must agree. The trained weights of the package, a partition a photograph.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from approximations import agreement, partitions, photographs
from ceilings import has_bf16
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ltrp_core import linear
from ltrp_core.mae import load_mae
from ltrp_core.scoring import leave_one_out_scores

Rounding = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    operand: Rounding
    result: Rounding | None
    attention: bool
    """Whether the products of attention have it as well"""


def _tf32(x: Tensor) -> Tensor:
    """Rounds to 10 bits after the leading one, half away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _cast(dtype: torch.dtype) -> Rounding:
    return lambda x: x.to(dtype).float()


def _scaled(highest: float, rounding: Rounding) -> Rounding:
    """A scale for each row: of a token's values, or of a weight's output."""

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / highest
        return rounding(x / scale) * scale

    return rounded


FORMATS = {
    "tf32": Format(_tf32, None, True),
    "fp16": Format(_cast(torch.float16), _cast(torch.float16), True),
    "bf16": Format(_cast(torch.bfloat16), _cast(torch.bfloat16), True),
    "int8, a scale a row": Format(_scaled(127.0, torch.round), None, False),
    "fp8 (e4m3), a scale a row": Format(
        _scaled(448.0, _cast(torch.float8_e4m3fn)), _cast(torch.bfloat16), False
    ),
}


class _Rounded(TorchFunctionMode):
    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        form, of = self.form, 0
        if func is F.linear:
            of = 2
        elif func is F.scaled_dot_product_attention and form.attention:
            of = 3
        if not of:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            rounded = [form.operand(operand) for operand in args[:of]]
            result = func(*rounded, *args[of:], **(kwargs or {}))
            return result if form.result is None else form.result(result)


@contextmanager
def computing_as(form: Format) -> Iterator[None]:
    """Within it scoring's products are of a format."""

    own = linear._ONEDNN
    linear._ONEDNN = None  # without it every product is an `F.linear`
    try:
        with _Rounded(form):
            yield
    finally:
        linear._ONEDNN = own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    keys, images = photographs(arguments.shards, 4 if arguments.quick else arguments.images)
    visible, mae = partitions(keys), load_mae("mae_tiny")
    exact = leave_one_out_scores(mae, images, visible)

    def show(name: str, found: Tensor) -> None:
        print(f"{name:28} {agreement(exact, found)}", flush=True)

    print(f"order against float32: mae_tiny, {len(keys)} photographs, n = {visible.shape[1]}")
    print(f"{'products in':28} {'tau':>7} {'+-':>7} {'worst':>6} {'top 5':>6}")
    for name, form in FORMATS.items():
        with computing_as(form):
            show(name, leave_one_out_scores(mae, images, visible))
    if has_bf16():
        show("bf16, computed", leave_one_out_scores(mae, images, visible, precision="bf16"))


if __name__ == "__main__":
    main()
