"""Random numbers that are a pure function of what they are for.

A counter-based generator (Philox) is keyed by a hash of the run seed, the sample key and the
purpose, so the order of shards, the number of workers, the batch size and a restart change nothing.
Only raw generator output is used: NumPy guarantees it across versions, unlike its distributions.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def random_bits(count: int, *, seed: int, key: str, purpose: str) -> NDArray[np.uint64]:
    """Returns `count` random 64-bit integers (count,), a pure function of the arguments."""
    text = f"{seed}\0{purpose}\0{key}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=16).digest()
    generator = np.random.Philox(key=int.from_bytes(digest, "little"))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def random_uniform(count: int, *, seed: int, key: str, purpose: str) -> NDArray[np.float64]:
    """Returns `count` numbers (count,) in [0, 1), a pure function of the arguments."""
    bits = random_bits(count, seed=seed, key=key, purpose=purpose)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_permutation(length: int, *, seed: int, key: str, purpose: str) -> NDArray[np.int64]:
    """Returns a uniform permutation (length,) of 0 .. length-1, a function of the arguments."""
    bits = random_bits(length, seed=seed, key=key, purpose=purpose)
    return np.argsort(bits, kind="stable").astype(np.int64)
