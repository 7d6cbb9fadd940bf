"""Everything a report is made from, by the stages themselves: small, and in seconds."""

from dataclasses import dataclass
from pathlib import Path

import torch
from scored_caches import QUIET, scored, write_tars

from ltrp_core.rankers import create_ranker, save_ranker
from pipeline.files import replace_text
from pipeline.inputs import Shard
from pipeline.store.run_file import claim_folder
from pipeline.units.run import run_select
from pipeline.workers import InProcessPool
from stages.select_patches import SelectConfig

CURVE = (
    '{"epoch": 1.0, "loss": 3.0, "tau": 0.1, "cover_tau": 0.2}\n'
    '{"epoch": 2.0, "loss": 2.0, "tau": 0.3, "cover_tau": 0.4}\n'
)


@dataclass(frozen=True)
class ReportInputs:
    """Where the stages left what the report shows."""

    shards: list[Shard]
    teacher: Path
    ranker: Path
    selections: Path


def small_report_inputs(folder: Path, photographs, mae) -> ReportInputs:
    """Scores, maps and selections of some photographs; one member of the shards is no image."""
    broken = {**photographs, "broken_0": photographs["cat_0"][:700]}
    shards = write_tars(folder / "shards", broken, per_tar=5)
    scored(
        folder / "teacher", shards, mae, views=1, partitions=4, crop="eval", sampler="cover",
        mask_ratio=0.75,
    )  # fmt: skip
    torch.manual_seed(0)
    ranker = create_ranker("vit_tiny", grid=6, patch_size=8)
    claim_folder(folder / "ranker", "train-ranker", {"epochs": 2})
    extra = {"epoch": 2, "measures": {"tau": 0.3, "cover_tau": 0.4}, "ceiling": {"tau": 0.5}}
    save_ranker(ranker, folder / "ranker", extra)
    replace_text(folder / "ranker" / "curve.jsonl", CURVE)
    run_select(
        SelectConfig(ranker=str(folder / "ranker")),
        shards,
        folder / "selections",
        InProcessPool(),
        QUIET,
    )
    return ReportInputs(shards, folder / "teacher", folder / "ranker", folder / "selections")
