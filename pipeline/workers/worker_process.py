"""What runs in a Ray worker."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from pipeline.workers.code_version import code_version
from pipeline.workers.outcomes import Failure, MakeWork, Slot, Work, classify


class WorkerProcess:
    """The class of the actors: placed, then prepared once, then given one item after the other.

    Errors are returned as Failures: not every exception can be pickled, and here their kind is
    known.
    """

    def __init__(self) -> None:
        self._work: Work | None = None

    def place(self) -> tuple[str, str]:
        """Returns host and version; that it returns says that Ray has found a slot."""
        return socket.gethostname(), code_version()

    def prepare(self, make: MakeWork, slot: Slot) -> Failure | None:
        """Makes the work."""
        os.environ["OMP_NUM_THREADS"] = str(slot.cpus)  # for a torch that is imported below
        try:
            self._work = make(slot)
        except Exception as error:
            return classify(error)
        _use_threads(slot.cpus)
        return None

    def work(self, item: Any) -> Any:
        """Returns the result, or a Failure."""
        assert self._work is not None
        try:
            return self._work(item)
        except Exception as error:
            return classify(error)


def _use_threads(count: int) -> None:
    """Torch may have been imported, and so have read the environment, before it was set."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
