"""The commands that need nothing yet: shards, the demo, completion. None waits for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from pipeline.commands.options import PATH, config_options, finish, out_option
from pipeline.console.progress import open_progress
from pipeline.console.terminal import say
from pipeline.packing import run_pack
from stages.pack import PackConfig


@click.command()
@click.argument("images", type=PATH)
@out_option("shards")
@config_options(PackConfig)
def pack(images: Path, out: Path, **options: Any) -> int:
    """Turn a folder of images into tar shards.

    IMAGES is searched with its subfolders; the first subfolder names the class (ImageFolder).

    Example: ltrp-pipeline pack photos --out shards
    """
    return finish(run_pack(PackConfig(**options), images, out, open_progress()))


@click.command()
@out_option("demo-out")
@click.option("--train", is_flag=True, help="an autoencoder and a ranker from scratch: minutes")
@click.option("--quick", is_flag=True, help="with --train: a short one, some 100 s on two cores")
def demo(out: Path, train: bool, quick: bool) -> int:
    """Score, select, evaluate and draw a few photographs.

    The photographs are ten that scikit-image, scikit-learn and matplotlib ship, and two crops of
    them; masked autoencoder and ranker are mae_tiny and ranker_tiny, which the package carries, or
    with --train new ones that learn from these photographs alone. Ends with a table and
    OUT/report/index.html.

    Example: ltrp-pipeline demo --out demo-out
    """
    from pipeline.demo.demo import FULL, QUICK, run_demo

    if quick and not train:
        raise click.UsageError("--quick shortens a training: pass --train, too, or leave it out")
    return run_demo(out, training=None if not train else QUICK if quick else FULL)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes a shell complete commands.

    Options, choices and the package's own names are completed, too. Put the line into the file that
    your shell reads at its start: ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.

    Example: ltrp-pipeline completion bash >> ~/.bashrc
    """
    from pipeline.cli import COMPLETE, cli

    made = get_completion_class(shell)
    assert made is not None
    say(made(cli, {}, "ltrp-pipeline", COMPLETE).source(), nl=True)
    return 0
