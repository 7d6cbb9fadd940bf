"""Where ranks of one machine find each other: a file. torch's store listens on all addresses."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any
from unittest import mock

from ray.train.torch import TorchConfig, config


@dataclass
class FileTorchConfig(TorchConfig):
    """Ray Train's TorchConfig, but ranks meet in a file of a folder, and no port is opened."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[Any]:
        """Ray Train starts this on the ranks."""
        return _FileBackend


class _FileBackend(config._TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # A new one each time: what an attempt before has left would be taken for this one's.
        place = f"file://{backend_config.folder}/ranks-{secrets.token_hex(8)}"

        def meet(**options: Any) -> None:
            _meet(place, **options)

        with mock.patch.object(config, "_setup_torch_process_group", meet):
            super().on_start(worker_group, backend_config)


def _meet(place: str, **options: Any) -> None:
    # In the process of a rank, where nothing is patched.
    config._setup_torch_process_group(**(options | {"init_method": place}))
