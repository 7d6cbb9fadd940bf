"""From the bytes of a shard to samples: decoding on threads, ahead of the model, in order."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, cast

from pipeline.inputs.images import ImageError, decode_image, decoding_bytes
from pipeline.inputs.shards import Member, OnDamage, Shard
from stages.protocols import BadSample, Sample

T = TypeVar("T")

_MEGABYTES_AHEAD = 256
"""Of encoded and decoded images that may wait for the model."""


@dataclass(frozen=True, slots=True)
class _Decoded(Generic[T]):
    value: T | None
    bad: BadSample | None
    seconds: float


class SampleStream(Generic[T]):
    """Iterates over `prepare(sample)` of every image of a shard that decodes, in the shard's order.

    The result does not depend on `threads`. When the iteration has ended `bad`, `identity`,
    `damage` and `seconds` are complete. Closing it early ends its threads.

    Raises (on iteration):
        DamagedShardError, OSError: as the shard's reader.
        ValueError: it was closed, so what comes next is not all there is.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        on_damage: OnDamage = "strict",
        prepare: Callable[[Sample], T],
        threads: int = 0,
        megabytes_ahead: int = _MEGABYTES_AHEAD,
    ) -> None:
        self._reader = shard.open(on_damage)
        self._prepare = prepare
        self._threads = threads
        self._bytes_ahead = megabytes_ahead << 20
        self._ended = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._reading: threading.Thread | None = None
        self._bad: list[BadSample] = []
        self.seconds = {"read": 0.0, "decode": 0.0, "wait": 0.0}
        """Reading, decoding and preparing (sum over threads), and what the consumer waited."""

    @property
    def bad(self) -> list[BadSample]:
        """Members that hold no usable image, in order, then samples that have none."""
        return [*self._bad, *self._reader.left_out]

    @property
    def identity(self) -> dict[str, Any]:
        """Name, size and sha256 of the shard."""
        return self._reader.identity

    @property
    def choices(self) -> Mapping[tuple[str, str], int]:
        """Samples that had several images, by the ending that was taken and the one left."""
        return self._reader.choice.counts

    @property
    def damage(self) -> str | None:
        """What `salvage` forgave."""
        return self._reader.damage

    def __iter__(self) -> Iterator[T]:
        decoded = self._ahead() if self._threads else map(self._decode, self._reader)
        while True:
            self._check_open()
            started = time.monotonic()
            item = next(decoded, None)
            self.seconds["wait"] += time.monotonic() - started
            if item is None:
                break
            self.seconds["decode"] += item.seconds
            if item.bad is not None:
                self._bad.append(item.bad)
            else:
                yield cast(T, item.value)
        self.seconds["read"] = self._reader.seconds

    def close(self) -> None:
        """Ends the threads; on return there are none.

        Not left to the iterator: after an exception its frame lives as long as the traceback.
        """
        self._ended.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._reading is not None:
            self._reading.join()

    def _check_open(self) -> None:
        if self._ended.is_set():
            raise ValueError("the sample stream is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, member: Member) -> _Decoded[T]:
        started = time.monotonic()
        try:
            sample = Sample(member.key, decode_image(member.data), member.content)
        except ImageError as error:
            row = BadSample(member.key, member.offset, error.reason, str(error))
            return _Decoded(None, row, time.monotonic() - started)
        return _Decoded(self._prepare(sample), None, time.monotonic() - started)

    def _ahead(self) -> Iterator[_Decoded[T]]:
        """Yields as `map(self._decode, reader)` does, but a few samples ahead.

        One thread reads, `threads` decode. The queue is bounded by count; a large image takes the
        place of many small ones (`_Budget`).
        """
        budget = _Budget(self._bytes_ahead)
        waiting: queue.Queue[Future[_Decoded[T]] | BaseException | None] = queue.Queue()
        room = threading.Semaphore(4 * self._threads + 16)
        costs: deque[int] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="decode") as pool:

            def read() -> None:
                try:
                    for member in self._reader:
                        cost = sum(len(data) for _, data in member.content)
                        cost += decoding_bytes(member.data)
                        while not (room.acquire(timeout=0.1) or self._ended.is_set()):
                            pass
                        while not (budget.take(cost, timeout=0.1) or self._ended.is_set()):
                            pass
                        if self._ended.is_set():
                            break
                        costs.append(cost)
                        waiting.put(pool.submit(self._decode, member))
                    waiting.put(None)
                except BaseException as error:  # the consumer raises it
                    waiting.put(error)

            reading = threading.Thread(target=read, name="read shard", daemon=True)
            self._pool, self._reading = pool, reading
            reading.start()
            try:
                while True:
                    item = waiting.get()
                    self._check_open()
                    if isinstance(item, BaseException):
                        raise item
                    if item is None:
                        break
                    yield item.result()
                    room.release()
                    budget.give(costs.popleft())
            finally:
                self._ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                reading.join()


class _Budget:
    """Bytes that may be ahead; a single image that is larger passes alone."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self.changed = threading.Condition()

    def take(self, cost: int, timeout: float) -> bool:
        with self.changed:
            fits = self.changed.wait_for(
                lambda: self.used == 0 or self.used + cost <= self.total, timeout
            )
            if fits:
                self.used += cost
            return fits

    def give(self, cost: int) -> None:
        with self.changed:
            self.used -= cost
            self.changed.notify_all()


def read_samples(shard: Shard, on_damage: OnDamage = "strict") -> Iterator[Sample]:
    """Yields the decoded samples of a shard in order; bad ones are left out.

    Args:
        shard: of any kind.
        on_damage: salvage: those before the damage are all there are.

    Raises:
        DamagedShardError: the shard is not whole, and `strict`.
    """
    with SampleStream(shard, on_damage=on_damage, prepare=_as_it_is) as stream:
        yield from stream


def _as_it_is(sample: Sample) -> Sample:
    return sample
