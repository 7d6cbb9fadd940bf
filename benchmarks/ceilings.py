"""What this device can do at most: matrix products at the shapes in use, and copies.

    python benchmarks/ceilings.py            # the shapes of scoring MAE-B at mask ratio 0.9
    python benchmarks/ceilings.py --quick

Other benchmarks divide by it: a floor is operations over rate, or bytes over bandwidth. Each rate
is the median of `--rounds`, each round long enough for the clock.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from ltrp_core.linear import inference_linear, multiplies
from ltrp_core.mae import MAEConfig, mae_config
from ltrp_core.partitions import num_visible
from ltrp_core.scoring.cost import Product, scoring_products

_LEAST_SECONDS = 0.2
_SQUARE = 2048


def seconds(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of one call, over rounds of as many calls as fill `_LEAST_SECONDS`."""

    def timed(calls: int) -> float:
        _wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        return (time.perf_counter() - started) / calls

    timed(2)
    calls = max(1, round(_LEAST_SECONDS / max(timed(1), 1e-7)))
    return statistics.median(timed(calls) for _ in range(rounds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def linear_rate(product: Product, precision: str, rounds: int, device: torch.device) -> float:
    """Operations a second of a linear layer of these sizes.

    Args:
        product: sizes.
        precision: `float32`, `tf32`, `bf16`, `fp16`, `fp8`; `float32 (MKL)` is F.linear on a CPU.
        rounds: measured.
        device: where.
    """
    x = torch.randn(product.rows, product.inner, device=device)
    weight = torch.nn.Parameter(torch.randn(product.outer, product.inner, device=device) * 0.02)
    bias = torch.zeros(product.outer, device=device)
    if precision in ("bf16", "fp16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        x, bias = x.to(dtype), bias.to(dtype)
        if device.type == "cuda":
            weight = torch.nn.Parameter(weight.to(dtype))
    work: Callable[[], object] = lambda: inference_linear(x, weight, bias)  # noqa: E731
    if precision == "float32 (MKL)":
        work = lambda: F.linear(x, weight, bias)  # noqa: E731
    if precision == "fp8":
        one = torch.ones((), device=device)
        a, b = x.to(torch.float8_e4m3fn), weight.detach().to(torch.float8_e4m3fn)
        work = lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)  # noqa: E731
    with torch.autocast(
        device.type,
        torch.float16 if precision == "fp16" else torch.bfloat16,
        enabled=precision in ("bf16", "fp16"),
    ):
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        single = seconds(work, rounds, device)
    return product.operations / product.times / single


@torch.no_grad()
def attention_rate(
    sequences: int, tokens: int, width: int, rounds: int, device: torch.device
) -> float:
    """Operations a second of fused attention (sequences, tokens, width), float32 on a CPU."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q, k, v = torch.randn(3, 1, sequences, tokens, width, device=device, dtype=dtype)
    single = seconds(lambda: F.scaled_dot_product_attention(q, k, v), rounds, device)
    return 4 * sequences * tokens * tokens * width / single


def copy_rate(rounds: int, device: torch.device) -> float:
    """Bytes a second that are read and written by a copy within the device's memory."""
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), rounds, device)


def transfer_rate(rounds: int, device: torch.device) -> float:
    """Bytes a second from pinned memory of the host to the device."""
    source = torch.zeros(64 * 2**20, dtype=torch.uint8).pin_memory()
    target = torch.empty(source.shape, dtype=torch.uint8, device=device)
    return source.nbytes / seconds(lambda: target.copy_(source, non_blocking=True), rounds, device)


def precisions(device: torch.device) -> list[str]:
    """Those that the device has instructions for."""
    if device.type == "cpu":
        return ["float32 (MKL)", "float32", *(["bf16"] if has_bf16() else [])]
    newest = torch.cuda.get_device_capability(device) >= (8, 9)
    return ["float32", "tf32", "fp16", "bf16", *(["fp8"] if newest else [])]


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own."""
    return multiplies(torch.bfloat16)


def largest_linears(config: MAEConfig, n: int) -> list[Product]:
    """The linear layers of scoring that take nine tenths of the time, each size once."""
    found: dict[tuple[int, int, int], Product] = {}
    for product in scoring_products(config, n):
        size = (product.rows, product.inner, product.outer)
        if product.kind == "linear":
            times = product.times + (found[size].times if size in found else 0)
            found[size] = Product("linear", times, *size)
    ordered = sorted(found.values(), key=lambda product: -product.operations)
    total, taken = sum(product.operations for product in ordered), 0
    chosen: list[Product] = []
    for product in ordered:
        if taken < 0.9 * total:
            chosen.append(product)
            taken += product.operations
    return chosen


def square() -> Product:
    """The product whose rate is called the ceiling."""
    return Product("linear", 1, _SQUARE, _SQUARE, _SQUARE)


def rates(
    sizes: Iterable[Product], kinds: Iterable[str], rounds: int, device: torch.device
) -> dict[str, dict[Product, float]]:
    """Operations a second by precision and size."""
    kinds = list(kinds)
    measured: dict[str, dict[Product, float]] = {kind: {} for kind in kinds}
    for size in sizes:
        for kind in kinds:
            measured[kind][size] = linear_rate(size, kind, rounds, device)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mae_base")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    torch.set_num_threads(arguments.threads)
    device, config = torch.device(arguments.device), mae_config(arguments.model)
    n = num_visible(config.num_patches, arguments.mask_ratio)
    kinds = precisions(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{name}, {arguments.threads} threads, torch {torch.__version__}; "
        f"{arguments.model}, n = {n}; GFLOP/s"
    )
    sizes = [square(), *largest_linears(config, n)]
    measured = rates(sizes, kinds, rounds, device)
    print(f"{'rows x in x out':>20} " + " ".join(f"{kind:>14}" for kind in kinds))
    for size in sizes:
        cells = " ".join(f"{measured[kind][size] / 1e9:14.0f}" for kind in kinds)
        print(f"{f'{size.rows} x {size.inner} x {size.outer}':>20} {cells}")
    heads, width = config.decoder_heads, config.decoder_width // config.decoder_heads
    rate = attention_rate(n * heads, config.num_patches, width, rounds, device)
    print(f"attention, {n * heads} x {config.num_patches} x {width}: {rate / 1e9:.0f} GFLOP/s")
    print(f"copy: {copy_rate(rounds, device) / 1e9:.1f} GB/s read and written")
    if device.type == "cuda":
        print(f"host to device: {transfer_rate(rounds, device) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
