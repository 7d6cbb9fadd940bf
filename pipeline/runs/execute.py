"""One stage of a whole run after the other, skipped where it is complete."""

from __future__ import annotations

from dataclasses import dataclass, field

from ltrp_core.errors import RequestError
from pipeline.console.terminal import say
from pipeline.runs.config import RunConfig
from pipeline.runs.plan import Commands, Step, plan
from pipeline.runs.state import mark_done


def execute(
    config: RunConfig, commands: Commands, *, start: str | None, only: str | None, dry_run: bool
) -> int:
    """Runs or shows the stages of a file; returns the exit status of the last.

    Args:
        config: the file.
        commands: of the stages.
        start: a stage that is run anyway, like those after it.
        only: the one stage that is run.
        dry_run: shows what would be run.
    """
    return _Run(config, commands, start, only, dry_run).all()


@dataclass(slots=True)
class _Run:
    config: RunConfig
    commands: Commands
    start: str | None
    only: str | None
    dry_run: bool
    steps: dict[str, Step] = field(default_factory=dict)
    is_forced: bool = False

    def all(self) -> int:
        """Runs or shows one stage after the other; returns the exit status of the last."""
        for section in self.config.sections:
            step = plan(self.config, section, self.steps, self.commands)
            self.steps[section.name] = step
            status = self._one(step)
            if status:
                return status
        return 0

    def _one(self, step: Step) -> int:
        name = step.section.name
        self.is_forced |= step.section.is_called(self.start)
        is_only = step.section.is_called(self.only)
        waits = [s for s in step.section.sources if not self.steps[s].done]
        wanted = (self.only is None or is_only) and (self.is_forced or is_only or not step.done)
        state = "complete" if step.done and not wanted else "left out" if not wanted else "to do"
        say(f"{name}: {state}: {step.folder}", err=not self.dry_run)
        if self.dry_run:
            say(f"  {step.line}")
            step.done |= wanted  # what comes after it is told as if it had run
            return 0
        if not wanted:
            return 0
        if waits:
            raise RequestError(
                f"stage {name} needs the output of stage {waits[0]}, which is not complete; "
                "run that first"
            )
        status = self.commands.run(step.section, step.arguments)
        if not status:
            mark_done(self.config.out, step.folder, step.inputs, step.line, name, step.stamps)
            step.done = True
        else:
            say(f"{self.config.where}: stage {name} failed; what is done is kept", err=True)
        return status
