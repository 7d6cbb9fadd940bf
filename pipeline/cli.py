"""`ltrp-pipeline`: the command table, exit codes, and errors in one line.

Exit status: 0 all done, 1 failed shards, 2 wrong use, 130 interrupted. The commands are imported
when they are called, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import difflib
import io
import sys

import click

from ltrp_core.errors import RequestError
from pipeline import __version__
from pipeline.console.address_space import lack_of_address_space
from pipeline.console.signals import interrupt_on_signals
from pipeline.console.terminal import guard_messages, printable, say, say_traceback
from pipeline.remote import RemoteError, is_remote, remote_error
from pipeline.runs.spec import STAGES, load

COMPLETE = "_LTRP_PIPELINE_COMPLETE"
"""The variable by which a shell asks for completion: see `completion`."""
_GROUPS = {
    "evaluate": ("pipeline.commands.evaluations:evaluate", "Measure selections and scores."),
}
"""Commands that stages are subcommands of."""
COMMANDS = {
    "demo": (
        "pipeline.commands.first_steps:demo",
        "Score, select, evaluate and draw a few photographs.",
    ),
    **{spec.typed[0]: _GROUPS.get(spec.typed[0], (spec.command, spec.line)) for spec in STAGES},
    "run": ("pipeline.commands.whole_runs:run", "Run all stages of a YAML file."),
    "submit": ("pipeline.commands.jobs:submit", "Run a command as a job of a Ray cluster."),
    "export": ("pipeline.commands.exports:export", "Write a ranker for other runtimes."),
    "push-to-hub": (
        "pipeline.commands.exports:push_to_hub",
        "Upload a ranker to the Hugging Face hub.",
    ),
    "benchmark-vit": (
        "pipeline.commands.benchmarks:benchmark_vit",
        "Count and time vision transformers with a ranker.",
    ),
    "completion": (
        "pipeline.commands.first_steps:completion",
        "Print what makes a shell complete commands.",
    ),
    "doctor": ("pipeline.commands.health:doctor", "Tell whether this machine can do a run."),
    "plan": ("pipeline.commands.planning:plan", "Tell what `score` would take."),
    "status": ("pipeline.commands.caches:status", "Show how far a run is."),
    "inspect": ("pipeline.commands.caches:inspect", "Show what is in a unit."),
    "convert": ("pipeline.commands.caches:convert", "Write a cache in the other form."),
    "verify": ("pipeline.commands.caches:verify", "Check a cache, unit by unit."),
}
"""In the order of a run: name -> (where it is, its line in the help)."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = load(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        close = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
        if name not in COMMANDS and not name.startswith("-") and close:
            ctx.fail(f"No such command {name!r}; did you mean {' or '.join(close)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ltrp-pipeline")
def cli() -> None:
    """Learn to rank the patches of images without labels, from cached pseudo-scores.

    A run: pack, score, train-ranker, select, evaluate, report. Try: ltrp-pipeline demo
    """


def main() -> None:
    """Entry point of the console script."""
    interrupt_on_signals()
    guard_messages()
    try:
        status = cli.main(standalone_mode=False, complete_var=COMPLETE)
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = _fail("interrupted; run the same command again to go on from here", 130)
    except click.ClickException as error:
        _say_usage(error)
        status = 2
    except Exception as error:
        message = _one_line(error)
        if message is None:
            say_traceback()
        status = 1 if message is None else _fail(message, 2)
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: Exception) -> str | None:
    """Returns what to tell the user; None if the error is this program's."""
    limited = lack_of_address_space(error)
    if limited is not None:
        return limited
    if isinstance(error, RequestError | RemoteError):
        return str(error)
    if is_remote(error):
        return str(remote_error("a server", error))
    if isinstance(error, UnicodeEncodeError) and not error.object.isprintable():
        return f"{error.object}: a name that is not UTF-8 cannot be written down; rename it"
    if isinstance(error, OSError):
        named = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        return f"{named}; check the path, its permissions and the space left"
    return None


def _say_usage(error: click.ClickException) -> None:
    said = io.StringIO()
    error.show(said)
    # The command's own lines stand before; what the user typed may break the last one.
    usage, mark, message = said.getvalue().rstrip("\n").rpartition("Error: ")
    say(f"{usage}{mark}{printable(message)}", err=True)


def _fail(message: str, status: int) -> int:
    say(f"error: {printable(' '.join(message.split()))}", err=True)
    return status


if __name__ == "__main__":
    main()
