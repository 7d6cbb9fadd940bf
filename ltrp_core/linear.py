"""`x W^T + b` by the faster of the two CPU matrix libraries that torch carries.

On a CPU torch sends a float32 `F.linear` to MKL, which leaves the wide vector units of CPUs that
are not Intel's idle; oneDNN, which torch's compiler uses for frozen models, does not. The figures
are in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What torch.compile emits for frozen linear layers. It is not public, so it may be absent.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def inference_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns what `F.linear` does, to rounding; without gradients.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,) or None.
    """
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if _ONEDNN is None or not on_cpu or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight, bias)
    result: Tensor = _ONEDNN(x, weight.detach(), bias, "none", [], "")
    return result
