"""Linear layers by the fastest matrix products that torch carries for a CPU.

On a CPU torch sends a float32 `F.linear` to MKL, which leaves the wide vector units of CPUs that
are not Intel's idle; oneDNN, which torch's compiler uses for frozen models, does not. oneDNN also
computes GELU before a product leaves the cache, and is faster on weights in a layout of its own.
The figures are in benchmarks/RESULTS.md.

That layout is a copy, and nothing that torch tells of a tensor says for sure that its values are
still those that were copied: a fused optimizer, for one, changes them unseen. So copies are made
within `frozen_weights()` alone, by code that changes no weight there, and end with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["none", "gelu"]

# What torch.compile emits for frozen linear layers. They are not public, so they may be absent.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_PACKED_FROM_ROWS = 1024
"""Fewer rows do not repay a second copy of the weights."""
_PACKED_FOR_ROWS = 4096
_PRODUCT_FROM_ROWS = 16
"""Of fewer rows MKL's product is faster: it takes the weights as they lie."""


class _Copy(NamedTuple):
    of: Tensor
    """Held, so that no other tensor gets its id."""
    weight: Tensor


_COPIES: ContextVar[dict[tuple[int, torch.dtype], _Copy] | None] = ContextVar(
    "copies of frozen weights", default=None
)


@contextlib.contextmanager
def frozen_weights() -> Iterator[None]:
    """Within it, in this thread, no weight changes: products take copies in oneDNN's layout.

    A copy is made when a weight is first taken, and all are gone at the end. They change no bit of
    a product. Within another one: part of that.
    """
    if _COPIES.get() is not None:
        yield
        return
    token = _COPIES.set({})
    try:
        yield
    finally:
        _COPIES.reset(token)


def inference_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
) -> Tensor:
    """Returns what `F.linear` does, to rounding, or the GELU of that; without gradients.

    Under `torch.autocast` the product is computed in its type, as `F.linear` would.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,) or None.
        activation: `gelu` is the exact one (by erf), that of timm's blocks.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if not (_has_onednn(x, weight) and multiplies(dtype)):
        result = F.linear(x, weight, bias)
        return F.gelu(result) if activation == "gelu" else result
    return _product(
        x.to(dtype),
        _packed(weight, dtype, rows=x.numel() // x.shape[-1]),
        None if bias is None else bias.detach().to(dtype),
        activation,
    )


def use_fast_linears(model: nn.Module) -> None:
    """Replaces every `nn.Linear` within `model` by one that computes by oneDNN's products.

    It does where they are the faster: in float32 on a CPU, with and without gradients, unless the
    model is compiled; elsewhere, and where torch has none, it computes as before. Names, parameters
    and hooks stay the same objects. A model that is itself an `nn.Linear` has no place to put
    another one, and stays as it is.
    """
    made: dict[nn.Module, _FastLinear] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            # A layer that stands in two places is still one afterwards.
            if type(child) is nn.Linear:
                made[child] = made.get(child) or _FastLinear(child)
                parent._modules[name] = made[child]


class _FastLinear(nn.Linear):
    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        # Parameters, hooks, mode and sizes are the layer's own: whoever holds it sees the same.
        self.__dict__.update(layer.__dict__)

    def forward(self, input: Tensor) -> Tensor:
        few = input.numel() < _PRODUCT_FROM_ROWS * self.in_features
        if few or torch.compiler.is_compiling():
            return super().forward(input)
        if not (torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)):
            return inference_linear(input, self.weight, self.bias)
        in_float32 = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not in_float32 or not _has_onednn(input, self.weight):
            return super().forward(input)
        learned: Tensor = _LearnedProduct.apply(input, self.weight, self.bias)
        return learned


class _LearnedProduct(torch.autograd.Function):
    """`F.linear` whose three products are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.t()).view_as(x) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    assert _ONEDNN is not None
    # The last argument says which GELU: the one that is no approximation.
    which = "none" if activation == "gelu" else ""
    product: Tensor = _ONEDNN(x, weight, bias, activation, [], which)
    return product


def _has_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and weight.dtype == torch.float32
    return _ONEDNN is not None and on_cpu and bool(torch.backends.mkldnn.is_available())


def multiplies(dtype: torch.dtype) -> bool:
    """Returns whether oneDNN multiplies in a type on this CPU: halves need instructions of it."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _packed(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """Returns the weight in `dtype`, for many rows in oneDNN's layout where weights are frozen.

    The layout is for some thousand rows, whatever their number: it changes no bit of a product.
    """
    plain, copies = weight.detach(), _COPIES.get()
    few = rows < _PACKED_FROM_ROWS
    if _PACK is None or copies is None or few or not isinstance(weight, nn.Parameter):
        return plain.to(dtype)
    kept = copies.get((id(weight), dtype))
    if kept is None:
        kept = _Copy(weight, _PACK(plain.to(dtype).contiguous(), _PACKED_FOR_ROWS))
        copies[id(weight), dtype] = kept
    return kept.weight
