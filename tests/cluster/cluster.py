"""The cluster of `make cluster-test`: what runs on each host, and what is asked of it."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hosts import Host, Network

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GCS_PORT, DASHBOARD_PORT, METRICS_PORT, S3_PORT = 6379, 8265, 8080, 9000
SCORE = ("--mae", "mae_tiny", "--partitions", "3", "--views")

WATCHED = {
    # A host whose plug was pulled answers nothing: it is given up after 3 checks of 3 + 5 s.
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", flush=True)


STARTED = time.monotonic()


def make_shards(folder: Path, shards: int, images: int) -> None:
    """Packs crops of the photographs that scikit-image ships."""
    import tarfile

    from PIL import Image
    from skimage import data

    photographs = [data.astronaut(), data.chelsea(), data.coffee()]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        with tarfile.open(folder / f"part-{number:03d}.tar", "w") as tar:
            for index in range(images):
                of_all = number * images + index
                image = photographs[of_all % 3]
                top, left = of_all * 7 % 60, of_all * 13 % 140
                buffer = io.BytesIO()
                crop = image[top : top + 240, left : left + 260]
                Image.fromarray(crop).save(buffer, "JPEG", quality=90)
                info = tarfile.TarInfo(f"{of_all:05d}.jpg")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


class Cluster:
    """The hosts, switched on, with what runs on each of them."""

    def __init__(self, folder: Path, cores: list[int]) -> None:
        self.folder, self.cores = folder, cores
        self.network = Network("ltrp")
        names = ("head", "worker-1", "worker-2", "s3", "laptop")
        for stale in folder.glob("*.log"):
            stale.unlink()
        self.head, self.first, self.second, self.s3, self.laptop = (
            Host(self.network, name, number, folder) for number, name in enumerate(names, 1)
        )
        self.environment = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives its workers niceness 15: beside anything else on the machine they starve.
            "RAY_worker_niceness": "0",
            "AWS_ENDPOINT_URL": f"http://{self.s3.address}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            **WATCHED,
        }
        # The code travels with the job; none is found on the hosts by another way.
        os.environ.pop("PYTHONPATH", None)

    def start(self) -> None:
        for host in (self.head, self.s3, self.laptop):
            host.start()
        self.s3.popen(
            [str(BIN / "moto_server"), "-H", self.s3.address, "-p", str(S3_PORT)],
            "s3.log", self.environment,
        )  # fmt: skip
        self.head.popen(
            ["ray", "start", "--head", "--block", "--num-cpus=0", f"--port={GCS_PORT}",
             f"--node-ip-address={self.head.address}", f"--metrics-export-port={METRICS_PORT}",
             f"--dashboard-port={DASHBOARD_PORT}", f"--dashboard-host={self.head.address}",
             "--object-store-memory=100000000", "--disable-usage-stats"],
            "head.log", self.environment,
        )  # fmt: skip
        self.join(self.first, 0)
        self.join(self.second, 1)
        self.until_ready(2)

    def join(self, host: Host, number: int) -> None:
        """Switches a worker on; it joins again by itself whenever the head has given it up."""
        host.start([self.cores[number % len(self.cores)]])
        line = (
            f"while :; do ray start --block --address={self.head.address}:{GCS_PORT} --num-cpus=1 "
            f"--node-ip-address={host.address} --metrics-export-port={METRICS_PORT} "
            "--object-store-memory=100000000; sleep 1; done"
        )
        host.popen(["sh", "-c", line], f"{host.name}.log", self.environment)

    def until_ready(self, workers: int, timeout: float = 120.0) -> float:
        """Waits until so many workers have joined; returns the seconds it took."""
        started = time.monotonic()
        code = (
            "import ray\nray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
            "alive = [node['Resources'] for node in ray.nodes() if node['Alive']]\n"
            "print('CPUS', int(sum(found.get('CPU', 0) for found in alive)))"
        )
        while time.monotonic() - started < timeout:
            said = self.head.run(
                ["python", "-c", code], "ready.log", self.environment, 60, expect=None
            )
            if f"CPUS {workers}" in said:
                return time.monotonic() - started
            time.sleep(1)
        raise RuntimeError(f"{workers} workers have not joined:\n{said[-2000:]}")

    def submit(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Starts `ltrp-pipeline submit` on the laptop."""
        return self.laptop.popen(
            ["python", "-m", "pipeline.cli", "submit", "--address",
             f"http://{self.head.address}:{DASHBOARD_PORT}", *words],
            log, {**self.environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def job(self, *words: str, log: str, timeout: float = 300.0) -> str:
        """Submits and waits; returns what the laptop saw."""
        process = self.submit(*words, log=log)
        status = process.wait(timeout)
        said = (self.folder / log).read_text(errors="replace")
        if status != 0:
            raise RuntimeError(f"submit {words[0]}: status {status}\n{said[-3000:]}")
        return said

    def here(self, *words: str, host: Host | None = None, expect: int | None = 0) -> str:
        """Runs a command of ours on the laptop, or on another host, without the cluster."""
        return (host or self.laptop).run(
            ["python", "-m", "pipeline.cli", *words], f"{words[0]}.log",
            {**self.environment, "PYTHONPATH": str(ROOT)}, expect=expect,
        )  # fmt: skip

    def bucket(self, code: str) -> str:
        """Runs Python with `fs`, the S3 server's file system, on the laptop."""
        code = f"import s3fs\nfs = s3fs.S3FileSystem(use_listings_cache=False)\n{code}"
        return self.laptop.run(["python", "-c", code], "bucket.log", self.environment)

    def events(self, cache: str) -> list[dict[str, Any]]:
        """Returns the events of a cache's log, as anyone who reads the bucket sees them."""
        said = self.bucket(
            f"for name in sorted(fs.glob('bucket/{cache}/log/*.jsonl')):\n"
            "    print(fs.cat_file(name).decode())"
        )
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def num_units(self, cache: str) -> int:
        """Returns how many units are committed."""
        said = self.bucket(f"print('UNITS', len(fs.glob('bucket/{cache}/units/*/receipt.json')))")
        return int(said.split("UNITS ")[-1])


def unit_files(root: Path) -> dict[str, bytes]:
    """Returns every file of every unit, less the names that an object store needs."""
    found = {}
    for file in sorted((root / "units").rglob("*")):
        if file.is_file() and file.name != "receipt.json":
            parts = file.relative_to(root).parts
            found["/".join(p for p in parts if not p.startswith("data-"))] = file.read_bytes()
    return found


def same_bytes(cluster: Cluster, cache: str, alone: Path) -> int:
    """Returns how many files of a cache in the bucket are those of the run in one process.

    Raises:
        AssertionError: one differs, is missing or is one too many.
    """
    copy = cluster.folder / f"copy-{cache}"
    subprocess.run(["rm", "-rf", str(copy)], check=True)
    cluster.bucket(f"fs.get('bucket/{cache}/', {str(copy)!r} + '/', recursive=True)")
    ours, theirs = unit_files(alone), unit_files(copy)
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:5]
    different = [name for name in ours if ours[name] != theirs[name]]
    assert not different, different[:5]
    assert (copy / "manifest.parquet").read_bytes() == (alone / "manifest.parquet").read_bytes()
    return len(ours)


def speed(events: list[dict[str, Any]]) -> float:
    """Returns the shards/s from the first start of a unit to the last end of one."""
    done = [event for event in events if event["event"] == "done"]
    begin = min(event["time"] - event["seconds"]["total"] for event in done)
    return len(done) / (max(event["time"] for event in done) - begin)


def wait_for(what: str, seconds: float, is_so: Any, every: float = 0.5) -> None:
    """Waits until `is_so()`; raises RuntimeError after `seconds`."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
