"""A bar on a terminal, one JSON line now and then otherwise; the summary of a command."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from pipeline.console.signals import ignores_interrupts
from pipeline.console.terminal import printable, say
from stages.protocols import Bar, Summary

_LINE_EVERY_S = 30.0


class TerminalProgress:
    """Bars on standard error; standard output stays the result's."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Shows one bar while the body runs."""
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<14}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[facts]}"),
        )
        with RichProgress(*columns, console=self.console) as bars:
            yield _TerminalBar(bars, bars.add_task(name, total=total, facts=""))


class _TerminalBar:
    def __init__(self, bars: RichProgress, task: object) -> None:
        self.bars, self.task_id = bars, task

    def advance(self, amount: int = 1, **facts: float | str) -> None:
        text = escape(
            printable("  ".join(f"{name} {_short(value)}" for name, value in facts.items()))
        )
        fields = {"facts": text} if facts else {}
        self.bars.update(self.task_id, advance=amount, **fields)  # type: ignore[arg-type]


class JsonLineProgress:
    """One JSON line a task at its start and end, and every 30 s in between."""

    def __init__(self, every_s: float = _LINE_EVERY_S) -> None:
        self.every_s = every_s

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """Reports while the body runs."""
        bar = _JsonBar(name, total, unit, self.every_s)
        bar.report("started")
        yield bar
        bar.report("finished")


class _JsonBar:
    def __init__(self, name: str, total: int, unit: str, every_s: float) -> None:
        self.name, self.total, self.unit, self.every_s = name, total, unit, every_s
        self.count, self.facts = 0, dict[str, float | str]()
        self.started = self.reported = time.monotonic()

    def advance(self, amount: int = 1, **facts: float | str) -> None:
        self.count += amount
        self.facts.update(facts)
        if time.monotonic() - self.reported >= self.every_s:
            self.report("running")

    def report(self, event: str) -> None:
        self.reported = time.monotonic()
        line = {
            "event": event,
            "task": self.name,
            "done": self.count,
            "total": self.total,
            "unit": self.unit,
            "seconds": round(self.reported - self.started, 1),
            **self.facts,
        }
        say(json.dumps(line), err=True)


def open_progress() -> TerminalProgress | JsonLineProgress:
    """Returns bars on a terminal, JSON lines elsewhere; says how the work is not ended."""
    if ignores_interrupts():
        say(
            "note: SIGINT is ignored, as a shell has it for jobs in the background: Ctrl-C does "
            "not end this command, SIGTERM (`kill PID`) does",
            err=True,
        )
    return TerminalProgress() if sys.stderr.isatty() else JsonLineProgress()


def print_summary(summary: Summary) -> None:
    """Prints what was done, what failed and why, where the output is, what to run next."""
    rate = f", {summary.rate}" if summary.rate else ""
    counts = f"{summary.done} done, {summary.skipped} already there, {len(summary.failed)} failed"
    if summary.pending:
        counts += f", {summary.pending} not reached"
    lines = [
        f"{summary.stage}: {counts}; {summary.n_ok} images ok, {summary.n_bad} bad; "
        f"{summary.seconds:.1f} s{rate}"
    ]
    lines += [
        f"  failed {printable(name)}: {printable(why)}"
        for name, why in sorted(summary.failed.items())
    ]
    if summary.stopped:
        lines.append(f"  stopped: {summary.stopped}; then run the same command again")
    lines += [f"  note:   {printable(note)}" for note in summary.notes]
    if summary.output:
        lines.append(f"  output: {summary.output}")
    if summary.next_step and not summary.failed and not summary.stopped:
        lines.append(f"  next:   {summary.next_step}")
    say("\n".join(lines), err=True)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
