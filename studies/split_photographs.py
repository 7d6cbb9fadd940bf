"""Splits the photographs of some tars by the hash of their key: to learn from, to measure on.

    python studies/split_photographs.py caltech101.tar imagenet-sample.tar --out photos

A photograph belongs to what is learned from if the sha256 of its key, as a fraction of its range,
is below `--share`; else it measures. So its side depends on its name alone: not on the other
photographs, their order or a seed. `OUT/learn-00.tar` and so on hold the first side, in the order
of the hash (so that a shard holds all classes of all sources), `OUT/measure.tar` the other.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.inputs.keys import sample_key

SHARE = 0.8


def place(key: str) -> float:
    """Returns where the hash of a key lies in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@click.command()
@click.argument("tars", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--share", default=SHARE, show_default=True, help="what is learned from")
@click.option("--shards", default=16, show_default=True, help="of what is learned from")
def split(tars: tuple[Path, ...], out: Path, share: float, shards: int) -> None:
    """Writes OUT/learn-00.tar ... and OUT/measure.tar."""
    photographs: list[tuple[str, bytes]] = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    photographs.append((member.name.replace(" ", "_"), content.read()))
    photographs.sort(key=lambda photograph: place(sample_key(photograph[0])))
    learned = [one for one in photographs if place(sample_key(one[0])) < share]
    measured = photographs[len(learned) :]
    out.mkdir(parents=True, exist_ok=True)
    # Every n-th: the hash orders, and a shard must not be one end of it.
    for number in range(shards):
        _write(out / f"learn-{number:02d}.tar", learned[number::shards])
    _write(out / "measure.tar", measured)
    click.echo(
        f"{len(photographs)} photographs: {len(learned)} to learn from in {shards} shards, "
        f"{len(measured)} to measure on"
    )


def _write(path: Path, photographs: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in photographs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    split()
