"""Whether this machine can do a run: one finding a check, and what to do about it."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from ltrp_core.errors import RequestError
from ltrp_core.mae import load_mae
from ltrp_core.rankers import load_ranker, locate_ranker
from pipeline.inputs import find_shards
from pipeline.store.storage import Storage, open_storage

State = Literal["ok", "poor", "broken"]

_PACKAGE = "ltrp-pipeline"
_PYTHONS = ((3, 11), (3, 14))
_ENOUGH_SHM = 1 << 30
_ENOUGH_DISK = 10 << 30
_PROBE_BYTES = 16 << 20
_SLOW_BYTES_PER_S = 20e6
"""A unit of 5000 images with pixels is some 150 MB; slower than this its upload is felt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    text: str
    remedy: str = ""
    """Empty where nothing needs to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doctor:
    """What is looked at, beside the machine itself; empty: is not."""

    out: str = "."
    """Folder or URL that results will go to"""
    shards: tuple[str, ...] = ()
    mae: str = ""
    ranker: str = ""
    ray_address: str = ""

    def findings(self) -> Iterator[Finding]:
        """Yields the findings one by one, as they are made; no check depends on another."""
        yield _python()
        yield _packages()
        yield _devices()
        yield _shared_memory()
        yield _home()
        yield from _place(self.out)
        if self.shards:
            yield _shards(self.shards)
        if self.mae:
            yield _mae(self.mae)
        if self.ranker:
            yield _ranker(self.ranker)
        yield _ray(self.ray_address)


def _python() -> Finding:
    version = sys.version_info[:2]
    text = ".".join(map(str, sys.version_info[:3]))
    if _PYTHONS[0] <= version < _PYTHONS[1]:
        return Finding(check="python", state="ok", text=text)
    return Finding(check="python", state="broken", text=text, remedy="use Python 3.11 to 3.13")


def _packages() -> Finding:
    """Compares what is installed with what the package asks for."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(_PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return Finding(
            check="packages",
            state="poor",
            text=f"{_PACKAGE} is not installed, so its bounds are not known",
            remedy="pip install it; a checkout: pip install -e .",
        )
    missing, shown = [], []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{one} (not installed)")
            continue
        if not one.specifier.contains(version, prereleases=True):
            missing.append(f"{one} (found {version})")
        if one.name in ("torch", "timm", "ray", "zarr"):
            shown.append(f"{one.name} {version}")
    if missing:
        return Finding(
            check="packages",
            state="broken",
            text=f"outside the bounds: {', '.join(missing)}",
            remedy=f"pip install --upgrade {_PACKAGE}",
        )
    own = f"{_PACKAGE} {metadata.version(_PACKAGE)}"
    return Finding(check="packages", state="ok", text=", ".join([own, *sorted(shown)]))


def _devices() -> Finding:
    cores = len(os.sched_getaffinity(0))
    cpu = f"{cores} CPU core(s), {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        return _no_gpu(cpu)
    names = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        names.append(f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)")
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        return Finding(
            check="devices",
            state="broken",
            text=f"{', '.join(names)}: {str(error).splitlines()[0]}",
            remedy="another process holds the GPU, or torch has no kernels for it: see nvidia-smi",
        )
    return Finding(check="devices", state="ok", text=f"{', '.join(names)}; {cpu}")


def _no_gpu(cpu: str) -> Finding:
    """Tells a machine without a GPU from one whose GPU torch cannot use."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding(check="devices", state="ok", text=f"no GPU, {cpu}")
    built = torch.version.cuda
    what = f"torch is built for CUDA {built}" if built else "torch is built for CPUs only"
    return Finding(
        check="devices",
        state="broken",
        text=f"{cpu}, and a GPU that torch cannot use: {what}",
        remedy="install a driver for that CUDA, or another torch; containers: --gpus all",
    )


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding(
            check="shared memory",
            state="poor",
            text="there is no /dev/shm",
            remedy="loader processes need it: --loader-processes 0, or mount one",
        )
    free = shutil.disk_usage(path).free
    text = f"{free / 2**20:.0f} MiB free in /dev/shm"
    if free >= _ENOUGH_SHM:
        return Finding(check="shared memory", state="ok", text=text)
    return Finding(
        check="shared memory",
        state="poor",
        text=text,
        remedy="start the container with --shm-size=2g (Kubernetes: an emptyDir of medium Memory)",
    )


def _home() -> Finding:
    home = Path.home()
    if home.is_dir() and os.access(home, os.W_OK | os.X_OK):
        return Finding(check="home", state="ok", text=f"{home} can be written to")
    return Finding(
        check="home",
        state="poor",
        text=f"{home} cannot be written to",
        remedy="downloads and compiled kernels are kept there: set HOME, or HF_HOME and "
        "TORCHINDUCTOR_CACHE_DIR, to a folder that can",
    )


def _place(out: str) -> Iterator[Finding]:
    try:
        storage = open_storage(out)
    except RequestError as error:
        yield Finding(check="output", state="broken", text=str(error))
        return
    if storage.is_local:
        yield _folder(Path(out))
    else:
        yield _object_store(storage)


def _folder(out: Path) -> Finding:
    # What is not there yet will be made: its first parent that is there counts.
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            check="output",
            state="broken",
            text=f"{folder} is no folder that can be written to",
            remedy="choose another --out, or change its owner (in a container: the user's id)",
        )
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free >= _ENOUGH_DISK:
        return Finding(check="output", state="ok", text=text)
    remedy = "`ltrp-pipeline plan` tells how much a run takes"
    return Finding(check="output", state="poor", text=text, remedy=remedy)


def _object_store(storage: Storage) -> Finding:
    """Writes, reads and removes one object, and tries that a second commit is refused."""
    name = f".doctor-{secrets.token_hex(8)}"
    content = os.urandom(_PROBE_BYTES)
    try:
        started = time.monotonic()
        storage.replace(name, content)
        written = time.monotonic()
        whole = storage.read(name) == content
        read = time.monotonic()
        refused = not storage.create(name, b"second")
    except Exception as error:  # botocore's, aiohttp's, gcsfs' and the system's own
        return Finding(
            check="object store",
            state="broken",
            text=f"{storage.url}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="check the URL, the endpoint and the credentials (AWS_ENDPOINT_URL, "
            "AWS_ACCESS_KEY_ID, ... in the environment or the usual files)",
        )
    finally:
        with suppress(Exception):
            storage.remove(name)
    if not whole or not refused:
        what = "other bytes came back" if not whole else "an object was written over another"
        return Finding(
            check="object store",
            state="broken",
            text=f"{storage.url}: {what}",
            remedy="this store does not keep the promises that commits need: take another one",
        )
    up, down = _PROBE_BYTES / (written - started), _PROBE_BYTES / (read - written)
    text = f"{storage.url}: {up / 1e6:.0f} MB/s up, {down / 1e6:.0f} MB/s down, commits are safe"
    if min(up, down) >= _SLOW_BYTES_PER_S:
        return Finding(check="object store", state="ok", text=text)
    remedy = "work where the store is: same region, same cluster"
    return Finding(check="object store", state="poor", text=text, remedy=remedy)


def _shards(patterns: tuple[str, ...]) -> Finding:
    try:
        found = find_shards(patterns)
        first = next(iter(found[0].open("strict")), None)
    except (RequestError, OSError) as error:
        return Finding(check="shards", state="broken", text=str(error))
    size = sum(shard.size for shard in found)
    if first is None:
        text = f"{found[0].path} is empty"
        return Finding(check="shards", state="broken", text=text, remedy="pack it again")
    return Finding(
        check="shards", state="ok", text=f"{len(found)} shard(s), {size / 1e9:.2f} GB, readable"
    )


def _mae(source: str) -> Finding:
    try:
        mae = load_mae(source)
    except RequestError as error:
        return Finding(check="weights", state="broken", text=str(error))
    millions = sum(parameter.numel() for parameter in mae.parameters()) / 1e6
    text = f"{source}: {millions:.1f} million parameters, sha256 {mae.source.sha256[:12]}"
    return Finding(check="weights", state="ok", text=text)


def _ranker(source: str) -> Finding:
    try:
        ranker = load_ranker(source)
    except RequestError as error:
        return Finding(check="ranker", state="broken", text=str(error))
    text = f"{locate_ranker(source)}: {ranker.config['name']}, {ranker.config['input']}"
    return Finding(check="ranker", state="ok", text=text)


def _ray(address: str) -> Finding:
    from pipeline.workers.ray_start import import_ray, is_cluster, machines, start_ray

    try:
        ray = import_ray()
        if not is_cluster(address or None):
            text = f"{ray.__version__}; no cluster was named, so a run starts its own"
            return Finding(check="ray", state="ok", text=text)
        start_ray(address or None)
        found = machines()
    except RequestError as error:
        remedy = "see `ray status` on the head node; is the address one that this machine reaches?"
        return Finding(check="ray", state="broken", text=str(error), remedy=remedy)
    ray.shutdown()
    cpus, gpus = sum(one.cpus for one in found), sum(one.gpus for one in found)
    text = f"{ray.__version__}, {len(found)} machine(s), {cpus} CPU slot(s), {gpus} GPU(s)"
    if found:
        return Finding(check="ray", state="ok", text=text)
    return Finding(check="ray", state="broken", text=text, remedy="start workers: ray start")
