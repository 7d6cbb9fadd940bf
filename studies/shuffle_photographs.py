"""Mixes the photographs of some tars into shards of equal size, in an order drawn from a seed.

    python studies/shuffle_photographs.py caltech101.tar imagenet-sample.tar --out photos

Keys are the members' paths, so that a shard holds all classes of all sources.
"""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import click


@click.command()
@click.argument("tars", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--shards", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def shuffle(tars: tuple[Path, ...], out: Path, shards: int, seed: int) -> None:
    """Writes OUT/photos-00.tar and so on."""
    photographs: list[tuple[str, bytes]] = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    photographs.append((member.name.replace(" ", "_"), content.read()))
    random.Random(seed).shuffle(photographs)
    out.mkdir(parents=True, exist_ok=True)
    size = -(-len(photographs) // shards)
    for number in range(shards):
        with tarfile.open(
            out / f"photos-{number:02d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for name, content in photographs[number * size : (number + 1) * size]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    click.echo(f"{len(photographs)} photographs in {shards} shards of {size}")


if __name__ == "__main__":
    shuffle()
