"""Linear layers by the fastest matrix products that torch carries for a CPU.

On a CPU torch sends a float32 `F.linear` to MKL, which leaves the wide vector units of CPUs that
are not Intel's idle; oneDNN, which torch's compiler uses for frozen models, does not. oneDNN also
computes GELU before a product leaves the cache, and is faster on weights in a layout of its own.
The figures are in benchmarks/RESULTS.md.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

Activation = Literal["none", "gelu"]

# What torch.compile emits for frozen linear layers. They are not public, so they may be absent.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_PACKED_FROM_ROWS = 1024
"""Fewer rows do not repay a second copy of the weights."""
_PACKED_FOR_ROWS = 4096
_PRODUCT_FROM_ROWS = 16
"""Of fewer rows MKL's product is faster: it takes the weights as they lie."""


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
    if not _has_onednn(x, weight):
        result = F.linear(x, weight, bias)
        return F.gelu(result) if activation == "gelu" else result
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return _product(
        x.to(dtype),
        _packed(weight, dtype, rows=x.numel() // x.shape[-1]),
        None if bias is None else bias.detach().to(dtype),
        activation,
    )


def use_fast_linears(model: nn.Module) -> None:
    """Makes every `nn.Linear` in `model` compute by oneDNN's products where they are the faster.

    That is float32 on a CPU, with and without gradients, unless the model is compiled; elsewhere,
    and where torch has none, it computes as before. Names and weights stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _FastLinear


class _FastLinear(nn.Linear):
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


class _Packed(NamedTuple):
    made_of: tuple[object, ...]
    weight: Tensor


_PACKED = WeakIdKeyDictionary()


def _packed(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """Returns the weight in `dtype`, for many rows in oneDNN's layout, which is made once.

    Made anew when the weight has changed. The layout is for some thousand rows, whatever their
    number: it changes no bit of a product.
    """
    plain = weight.detach()
    if _PACK is None or rows < _PACKED_FROM_ROWS or not isinstance(weight, nn.Parameter):
        return plain.to(dtype)
    made_of = (weight.data_ptr(), weight._version, dtype)
    kept: _Packed | None = _PACKED.get(weight)
    if kept is None or kept.made_of != made_of:
        kept = _Packed(made_of, _PACK(plain.to(dtype).contiguous(), _PACKED_FOR_ROWS))
        _PACKED[weight] = kept
    return kept.weight
