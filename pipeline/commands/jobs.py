"""`submit`: any other command, as a job of a Ray cluster."""

from __future__ import annotations

import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import click

from ltrp_core.errors import RequestError
from pipeline.commands.options import PATH
from pipeline.console.terminal import printable, relay, say
from pipeline.runs.config import read_config
from pipeline.url_secrets import check_url
from pipeline.workers.job_code import make_job_folder
from pipeline.workers.ray_job import JobClient

_STAYS_HERE = frozenset({"submit", "demo", "push-to-hub"})
_LOOKS = frozenset({"doctor", "plan", "status", "inspect", "verify"})
"""Nothing is lost if they write nowhere."""
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(?:^|_)KEY", re.IGNORECASE)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("stage", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--address", help="of the dashboard, http://host:8265; else RAY_API_SERVER_ADDRESS, localhost"
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="follow the log to the end")
@click.option("--attach", metavar="JOB", help="follow a job that runs or has ended")
@click.option(
    "--with", "files", type=PATH, multiple=True, help="small file to bring along; repeatedly"
)
@click.option(
    "--env", "variables", metavar="NAME=VALUE", multiple=True, help="for the job; no secrets"
)
@click.option(
    "--python", default="python", show_default=True, help="interpreter on the cluster's machines"
)
@click.option(
    "--patience",
    default=3600.0,
    show_default=True,
    help="seconds that a lost cluster is asked again",
)
def submit(
    stage: str | None,
    arguments: tuple[str, ...],
    address: str | None,
    wait: bool,
    attach: str | None,
    files: tuple[Path, ...],
    variables: tuple[str, ...],
    python: str,
    patience: float,
) -> int:
    """Run a command as a job of a Ray cluster.

    Ships this code, streams the log, and survives a lost connection: the job goes on, and so does
    the log from where it was. The exit status is the job's. Options of `submit` stand before STAGE.
    Paths are the cluster's; --out must be a URL, or an absolute path on a disk that all share.

    Example: ltrp-pipeline submit score --shards s3://b/shards --mae mae_tiny --out s3://b/cache
    """
    if (stage is None) == (attach is None):
        raise click.UsageError("pass a STAGE with its options, or --attach JOB")
    client = None
    if stage is not None:
        _check(stage, arguments)
        environment = _environment(variables)
        brought = _brought(stage, arguments, files)
    client = JobClient(address, patience_s=patience, on_note=_note)
    if stage is None:
        return _follow(client, str(attach))
    job = f"ltrp-{stage}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    command = shlex.join([python, "-m", "pipeline.cli", stage, *_renamed(stage, arguments)])
    with tempfile.TemporaryDirectory(prefix="ltrp-job-") as folder:
        make_job_folder(Path(folder), brought)
        client.submit(job, command, Path(folder), environment)
    _note(f"job {job}: {command}")
    if not wait:
        say(job)
        return 0
    return _follow(client, job)


def _follow(client: JobClient, job: str) -> int:
    try:
        end = client.follow(job, relay)
    except KeyboardInterrupt:
        _note(f"the job goes on; back to it: ltrp-pipeline submit --attach {job}; to end it: "
              f"ray job stop {job}")  # fmt: skip
        raise
    if end.message:
        _note(f"job {job}: {end.message}")
    return end.status


def _check(stage: str, arguments: tuple[str, ...]) -> None:
    """Finds here what would fail there.

    Raises:
        RequestError: no such stage, credentials in an argument, results that would be lost.
    """
    from pipeline.cli import COMMANDS

    if stage not in COMMANDS or stage in _STAYS_HERE:
        known = [name for name in COMMANDS if name not in _STAYS_HERE]
        raise RequestError(f"submit {stage}: pass one of {', '.join(known)}")
    for argument in arguments:
        check_url("submit", argument)
    if {"-h", "--help"} & set(arguments):
        raise RequestError(f"for the options of {stage}: ltrp-pipeline {stage} --help")
    out = None if stage in _LOOKS else _out(stage, arguments)
    if out is not None and "://" not in out and not Path(out).is_absolute():
        raise RequestError(
            f"submit {stage}: --out {out} would be a folder of the job, which the cluster deletes; "
            "pass a URL, or an absolute path on a disk that all its machines share"
        )


def _out(stage: str, arguments: tuple[str, ...]) -> str | None:
    from pipeline.cli import cli

    context = click.Context(cli)
    command = cli.get_command(context, stage)
    assert command is not None
    # A group's own options stand behind its sub-command.
    words = list(arguments)
    if isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    params = command.make_context(stage, words, parent=context).params
    if stage == "run":
        return str(read_config(params["config"], params["changes"]).out)
    return str(params["out"]) if params.get("out") is not None else None


def _brought(stage: str, arguments: tuple[str, ...], files: tuple[Path, ...]) -> list[Path]:
    config = _config(stage, arguments)
    return [*files, *([config] if config is not None and config not in files else [])]


def _renamed(stage: str, arguments: tuple[str, ...]) -> list[str]:
    """Returns the arguments with the config file named as it lies in the job's folder."""
    config = _config(stage, arguments)
    return [
        config.name if config is not None and word == str(config) else word for word in arguments
    ]


def _config(stage: str, arguments: tuple[str, ...]) -> Path | None:
    """Returns the file of `run CONFIG`; None if it is a recipe, which the package has."""
    if stage != "run":
        return None
    return next((Path(word) for word in arguments if Path(word).is_file()), None)


def _environment(variables: tuple[str, ...]) -> Mapping[str, str]:
    found = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"--env {name}: pass NAME=VALUE")
        if _SECRET.search(name):
            raise RequestError(
                f"--env {name}: a job's environment is shown on the dashboard; set it where the "
                "cluster's machines start (their environment, ~/.aws/credentials, a secret)"
            )
        check_url(f"--env {name}", value)
        found[name] = value
    return found


def _note(text: str) -> None:
    say(f"note: {printable(text)}", err=True)
