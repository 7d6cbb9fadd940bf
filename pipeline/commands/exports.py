"""The commands that hand a trained ranker on: files for other runtimes, and the hub."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands.options import PATH, PLACE
from pipeline.console.terminal import say

_FORMATS = click.Choice(["onnx", "torch"])


@click.command()
@click.argument("ranker", type=PLACE)
@click.option("--format", "form", type=_FORMATS, default="onnx", show_default=True, help="of OUT")
@click.option(
    "--out",
    type=PATH,
    help="the file; by default ranker.onnx or ranker.pt2, in RANKER if that is a folder",
)
def export(ranker: str, form: str, out: Path | None) -> int:
    """Write a ranker for other runtimes.

    RANKER is a folder or hf-hub:user/name. The file takes `images`, float32 (B, 3, S, S),
    normalized, gives `scores` (B, L), and carries mean, deviation and grid. It is compared with the
    ranker on random images and photographs before it gets its name.

    Example: ltrp-pipeline export ranker --format onnx --out ranker.onnx
    """
    from pipeline.publishing.export import export_ranker

    if out is None:
        name = "ranker.onnx" if form == "onnx" else "ranker.pt2"
        out = Path(ranker) / name if Path(ranker).is_dir() else Path(name)
    report = export_ranker(ranker, out, format="onnx" if form == "onnx" else "torch")
    say(report.summary())
    return 0


@click.command("push-to-hub")
@click.argument("folder", type=PATH)
@click.argument("repository")
@click.option("--private", is_flag=True, help="make a new repository private")
@click.option("--revision", help="the branch; made if it is missing")
def push_to_hub(folder: Path, repository: str, private: bool, revision: str | None) -> int:
    """Upload a ranker to the Hugging Face hub.

    The weights, config.json, README.md (written if missing) and metrics.parquet go to REPOSITORY
    (user/name), nothing else. The token is that of `hf auth login` or HF_TOKEN.

    Example: ltrp-pipeline push-to-hub ranker me/ltrp-vit-small --private
    """
    from pipeline.publishing.export import push_to_hub as push

    address = push(folder, repository, private=private, revision=revision)
    say(f"pushed: {address}")
    source = f"hf-hub:{repository}" + (f"@{revision}" if revision else "")
    say(f"load it: load_ranker({source!r})")
    return 0
