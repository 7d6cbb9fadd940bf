"""`make cluster-test`: the stages on a cluster of hosts of their own, while hosts and links fail.

A head, two workers of one core each, an S3 server and a laptop, each in namespaces of its own
(hosts.py). The laptop submits; code, images, weights and token travel as they would. What comes out
is compared, byte for byte, with what one process makes without Ray. Needs root, iproute2, and the
extras `cluster` and `test`. Prints one line per step, and the table of docs/cluster_test.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster import (
    METRICS_PORT,
    ROOT,
    SCORE,
    Cluster,
    make_shards,
    same_bytes,
    say,
    speed,
    wait_for,
)

from ltrp_core.mae import create_mae, save_mae

LINK_DOWN_S = 30.0
S3_DOWN_S = 15.0


def run_all(cluster: Cluster, options: argparse.Namespace) -> dict[str, str]:
    """Runs everything; returns the figures. Raises at the first thing that is not as it must be."""
    rows: dict[str, str] = {}
    out = cluster.folder
    for stale in ("shards", "alone", "alone-selections", "ranker"):
        shutil.rmtree(out / stale, ignore_errors=True)
    make_shards(out / "shards", options.shards, options.images)
    say(f"{options.shards} shards of {options.images} photographs")
    cluster.start()
    say("head, two workers, S3 server and laptop are up; a token is asked for")
    fill_bucket(cluster)
    if options.speed:
        compare_speed(cluster, rows, options)
        return rows
    warm(cluster, rows, options)
    alone(out, "score", "--shards", out / "shards", *SCORE, options.views, "--out", out / "alone")
    say("scored in one process, without Ray")
    score_with_faults(cluster, rows, options)
    train_and_select(cluster, rows)
    return rows


def alone(out: Path, *words: object) -> None:
    """Runs a command of ours in one process on this machine, outside of the hosts."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--workers", "0"]
    with (out / "alone.log").open("ab") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)


def fill_bucket(cluster: Cluster) -> None:
    wait_for("the S3 server answers", 60, lambda: _makes_bucket(cluster))
    cluster.bucket(f"fs.put({str(cluster.folder / 'shards')!r}, 'bucket/', recursive=True)")
    say("shards are in the bucket")


def _makes_bucket(cluster: Cluster) -> bool:
    try:
        cluster.bucket("fs.mkdir('bucket')")
    except RuntimeError:
        return False
    return True


def score_words(
    cache: str,
    views: int,
    workers: object = "auto",
    shards: str = "shards",
    how: Sequence[str] = SCORE,
) -> list[str]:
    return ["score", "--shards", f"s3://bucket/{shards}", *how, str(views), "--workers",
            str(workers), "--out", f"s3://bucket/{cache}"]  # fmt: skip


def warm(cluster: Cluster, rows: dict[str, str], options: argparse.Namespace) -> None:
    """The first job uploads the code and makes its folder; the second finds a warm cluster."""
    one = "shards/part-000.tar"
    cluster.job(*score_words("warm-up", 1, 1, one), log="warm-up.log")
    submitted = time.time()
    cluster.job(*score_words("warm", 1, 1, one), log="warm.log")
    done = [event for event in cluster.events("warm") if event["event"] == "done"]
    first = min(event["time"] for event in done) - submitted
    seconds = next(e["seconds"]["total"] for e in done)
    rows["`submit` to the first unit committed, warm cluster"] = f"{first:.1f} s"
    rows["of it the unit itself"] = f"{seconds:.1f} s"
    say(f"submit to first unit: {first:.1f} s")


def compare_speed(cluster: Cluster, rows: dict[str, str], options: argparse.Namespace) -> None:
    # Random weights: no time depends on them. The folder of the results is a disk that all share.
    weights = cluster.folder / "mae_base.safetensors"
    save_mae(create_mae("mae_base"), weights)
    how = ("--mae", str(weights), "--partitions", "1", "--views")
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for workers in (1, 2):
            cache = f"speed-{workers}-{turn}"
            words = score_words(cache, 1, workers, how=how)
            cluster.job(*words, log=f"{cache}.log")
            found[workers].append(speed(cluster.events(cache)))
            say(f"{workers} worker(s): {found[workers][-1]:.3f} shards/s")
    one, two = (max(found[workers]) for workers in (1, 2))
    rows["model, images per shard"] = f"MAE-B, {options.images}"
    rows["shards/s, one worker"] = ", ".join(f"{value:.3f}" for value in found[1])
    rows["shards/s, two workers on two hosts"] = ", ".join(f"{value:.3f}" for value in found[2])
    rows["two workers against one, best of each"] = f"{two / one:.2f}"


def score_with_faults(cluster: Cluster, rows: dict[str, str], options: argparse.Namespace) -> None:
    process = cluster.submit(*score_words("cache", options.views), log="score.log")
    enough = options.shards // 8

    wait_for("some units", 180, lambda: cluster.num_units("cache") >= enough)
    killed = time.time()
    cluster.first.kill()
    say("worker-1: plug pulled")
    wait_for("units after the loss", 120, lambda: cluster.num_units("cache") >= 2 * enough)
    cluster.second.link("down")
    cut = time.time()
    say("worker-2: link cut")
    cluster.laptop.link("down")
    say("laptop: link cut, while submit follows the log")
    time.sleep(LINK_DOWN_S / 2)
    cluster.laptop.link("up")
    cluster.join(cluster.first, 0)
    say("laptop is back; a new worker-1 is switched on")
    time.sleep(max(0.0, LINK_DOWN_S - (time.time() - cut)))
    cluster.second.link("up")
    say(f"worker-2: link back after {time.time() - cut:.0f} s")
    at = cluster.num_units("cache")
    wait_for("units after the cut", 180, lambda: cluster.num_units("cache") > at)
    cluster.s3.link("down")
    cluster.s3.freeze(signal.SIGSTOP)
    say("S3 server: stopped, its link cut")
    time.sleep(S3_DOWN_S)
    cluster.s3.freeze(signal.SIGCONT)
    cluster.s3.link("up")
    say(f"S3 server: back after {S3_DOWN_S:.0f} s")
    status = process.wait(400)
    said = (cluster.folder / "score.log").read_text(errors="replace")
    assert status == 0, said[-3000:]
    say("scored: " + next(line for line in said.splitlines() if line.startswith("score:")))
    check_faults(cluster, rows, options, killed)


def check_faults(
    cluster: Cluster, rows: dict[str, str], options: argparse.Namespace, killed: float
) -> None:
    events = cluster.events("cache")
    done = [event["unit"] for event in events if event["event"] == "done"]
    assert len(done) == len(set(done)) == options.shards, "a unit is missing or was counted twice"
    files = same_bytes(cluster, "cache", cluster.folder / "alone")
    rows["units done, each once, after three faults"] = f"{len(done)} of {options.shards}"
    rows["files equal to those of one process, byte for byte"] = str(files)
    lost = [event for event in events if event["event"] == "attempt"]
    rows["attempts lost and made again"] = str(len(lost))
    for event in lost:
        say(f"lost: {event['unit']} on {event['worker']}: {event['reason']}")
    gone = [e["time"] for e in lost if e["worker"].startswith("worker-1") and e["time"] > killed]
    if gone:
        rows["a pulled plug is noticed, its unit put back, after"] = f"{min(gone) - killed:.1f} s"
    said = cluster.here("verify", "s3://bucket/cache", "--deep")
    assert ", 0 faults" in said, said
    say("verify --deep from the laptop: " + said.strip().splitlines()[-1])
    status = cluster.here("status", "s3://bucket/cache")
    say("status from the laptop: " + status.strip().splitlines()[0])
    seen = (cluster.folder / "score.log").read_text(errors="replace").splitlines()
    lines = [line for line in seen if line.startswith("{")]
    assert len(lines) == len(set(lines)), "a line of the log came twice"
    scrape(cluster)


def scrape(cluster: Cluster) -> None:
    """Keeps what Ray's exporter on the head shows of ours."""
    code = (
        "import urllib.request\n"
        f"text = urllib.request.urlopen('http://{cluster.head.address}:{METRICS_PORT}/metrics')"
        ".read().decode()\n"
        "print('\\n'.join(line for line in text.splitlines() if 'ltrp_' in line))"
    )
    said = cluster.laptop.run(
        ["python", "-c", code], "metrics.log", cluster.environment, expect=None
    )
    say(f"the exporter shows {len(said.splitlines())} line(s) of ours: metrics.log")


def train_and_select(cluster: Cluster, rows: dict[str, str]) -> None:
    out = cluster.folder
    started = time.monotonic()
    cluster.until_ready(2)
    said = cluster.job(
        "train-ranker", "--cache", "s3://bucket/cache", "--shards", "s3://bucket/shards",
        "--ranker", "vit_tiny", "--epochs", "2", "--workers", "2", "--out", str(out / "ranker"),
        log="train-ranker.log",
    )  # fmt: skip
    assert (out / "ranker" / "ranker.safetensors").is_file(), said[-2000:]
    rows["`train-ranker`, 2 epochs, 2 ranks on 2 hosts (gloo)"] = (
        f"{time.monotonic() - started:.0f} s"
    )
    say("trained on two hosts")
    words = ("select", "--ranker", str(out / "ranker"), "--keep-ratio", "0.5")
    cluster.job(*words, "--shards", "s3://bucket/shards", "--out", "s3://bucket/selections",
                log="select.log")  # fmt: skip
    alone(out, *words, "--shards", out / "shards", "--out", out / "alone-selections")
    files = same_bytes(cluster, "selections", out / "alone-selections")
    rows["files of `select` equal to those of one process"] = str(files)
    say("selected; equal to one process")


def figures(rows: Mapping[str, str]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield "| what | measured |"
    yield "| --- | --- |"
    for name, value in rows.items():
        yield f"| {name} | {value} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cluster-test")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--images", type=int, default=8, help="a shard")
    parser.add_argument("--views", type=int, default=2, help="more = slower shards")
    parser.add_argument(
        "--speed", action="store_true", help="one worker against two, MAE-B, and no faults"
    )
    return parser.parse_args()


def hidden_from_hosts(*paths: Path) -> str | None:
    """Returns what is wrong with paths that hosts must see: each has a /tmp of its own."""
    for path in paths:
        if path.resolve().is_relative_to("/tmp"):
            return (
                f"{path} is below /tmp, which every host of this test has for itself; use a clone, "
                "a VENV and an --out elsewhere"
            )
    return None


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("error: making network namespaces needs root")
    options = parse()
    hidden = hidden_from_hosts(ROOT, Path(sys.prefix), options.out)
    if hidden is not None:
        sys.exit(f"error: {hidden}")
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster = Cluster(options.out, sorted(os.sched_getaffinity(0)))
    try:
        rows = run_all(cluster, options)
    finally:
        cluster.network.close()
    text = "\n".join(figures(rows))
    (options.out / "figures.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
