"""What an evaluation compares: selections of the same images, and what stands beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltrp_core.selectors.references import center_scores, random_scores
from stages.evaluation.beside import Beside
from stages.evaluation.sources import (
    CENTER,
    RANDOM,
    STORED,
    TEACHER,
    top_only,
    without_prior,
)
from stages.protocols import Arrays, CacheReader
from stages.score_maps import ScoreMaps, teacher_maps
from stages.types import SelectRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Selections by their labels, the first one first, and a teacher."""

    first: CacheReader
    run: SelectRun
    """Of the first"""
    label: str
    others: Sequence[Beside]
    teacher: ScoreMaps | None

    @classmethod
    def of(cls, selections: Mapping[str, CacheReader], teacher: CacheReader | None) -> Compared:
        """Opens what is compared.

        Raises:
            RequestError: a selection or the teacher's cache is of other views than the first.
        """
        (label, first), *others = selections.items()
        run = SelectRun.of(first.run, label)
        return cls(
            first=first,
            run=run,
            label=label,
            others=[Beside(name, cache, run) for name, cache in others],
            teacher=None if teacher is None else teacher_maps(teacher, run.grid, run.crop),
        )

    @property
    def runs(self) -> dict[str, SelectRun]:
        """By label."""
        return {self.label: self.run} | {other.label: other.run for other in self.others}

    def read(self, unit: str) -> dict[str, Arrays]:
        """Returns the arrays of every selection for the images of a unit of the first."""
        arrays = self.first.read(unit)
        return {self.label: arrays} | {
            other.label: other.rows(unit, arrays) for other in self.others
        }

    def scores(self, arrays: Mapping[str, Arrays], *, draws: int, seed: int) -> dict[str, Tensor]:
        """Returns the scores (draws, B, L) of every source but the oracle that keeps its k best.

        Args:
            arrays: of B images in every selection, by label.
            draws: of `random`; every other source has one.
            seed: of `random`.
        """
        keys = [str(key) for key in arrays[self.label]["key"]]
        length = self.run.length
        found = {
            CENTER: center_scores(self.run.grid).expand(1, len(keys), -1),
            RANDOM: torch.stack(
                [
                    torch.stack([random_scores(key, length, draw=n, seed=seed) for key in keys])
                    for n in range(draws)
                ]
            ),
        }
        for source, (label, name) in self._stored(arrays).items():
            found[source] = torch.from_numpy(arrays[label][name].astype(np.float32))[None]
        if self.teacher is not None:
            found[TEACHER] = torch.from_numpy(np.stack(list(self.teacher.maps(keys))))[None]
        return found

    def _stored(self, arrays: Mapping[str, Arrays]) -> dict[str, tuple[str, str]]:
        """Returns the label and the array of each source that the selections hold the scores of.

        Not every selector has scores, and older selections lack some references. These are of the
        view alone, so any selection has them for all.
        """
        wanted: dict[str, list[tuple[str, str]]] = {
            source: [(label, name) for label in arrays] for source, name in STORED.items()
        }
        for label, run in self.runs.items():
            wanted[top_only(label)] = [(label, run.score_name)]
            wanted[without_prior(label)] = [(label, run.plain_name)]
        return {
            source: places[0]
            for source, all_places in wanted.items()
            if (places := [(label, name) for label, name in all_places if name in arrays[label]])
        }

    def notes(self, keeps: Mapping[float, int], measured: Collection[str]) -> list[str]:
        """Returns what is not in the tables, and why.

        Args:
            keeps: keep ratio -> k.
            measured: the sources that are in the tables.
        """
        notes = [
            f"{alone} image(s) of selection {other.label!r} are not in {self.label!r}, "
            "and not measured"
            for other in self.others
            if (alone := other.num_alone)
        ]
        for label, run in self.runs.items():
            if absent := [f"{ratio:g}" for ratio in keeps if ratio not in run.keep_ratio]:
                only = f", only {top_only(label)!r}" if top_only(label) in measured else ""
                notes.append(
                    f"at keep ratio {', '.join(absent)} there is no {label!r}{only}: `select` "
                    f"stored {', '.join(f'{ratio:g}' for ratio in run.keep_ratio)}"
                )
        return notes


def missing_references(found: Collection[str]) -> list[str]:
    """Returns a note on the stored references that are not among the sources `found`."""
    missing = [source for source in STORED if source not in found]
    if not missing:
        return []
    return [
        f"no {' and no '.join(missing)} beside the selections: they were written before `select` "
        "stored it; select again into a new --out to have it"
    ]
