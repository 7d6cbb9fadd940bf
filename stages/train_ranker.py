"""Stage 2: a ranking model learns the cached pseudo-scores; the MAE is not touched (Sec. 3.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltrp_core.errors import RequestError
from ltrp_core.losses import LOSSES, loss_by_name
from ltrp_core.patches import unpatchify
from ltrp_core.rankers import InitReport, Ranker, create_ranker, initialize_ranker
from ltrp_core.scoring import metric_names
from ltrp_core.selectors import prior_names
from ltrp_core.views import normalize_patches
from stages.devices import resolve_device
from stages.named_weights import as_texts, named_weights
from stages.options import option
from stages.protocols import Progress, Records, Summary, TrainingFolder
from stages.training.config import TrainingConfig
from stages.training.ddp import Processes
from stages.training.hold_out import HoldOut, Split, split_samples
from stages.training.loading import Loader
from stages.training.loop import Task, Trained, fit
from stages.training.order import RecordOrder
from stages.training.ranking_batches import RankingSteps
from stages.training.target_lists import Label, RankingBatch, TargetLists, read_mix
from stages.types import ScoreRun
from stages.weights import check_same_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRankerConfig(TrainingConfig):
    """Options of `train-ranker`; the defaults are the paper's recipe, scaled to the batch."""

    ranker: str = option(
        "vit_small", help="vit_tiny, vit_small, vit_base, mobile_former_26m, any timm name"
    )
    head: Literal["cls", "token"] = option(
        "token", help="token (a linear layer on each patch) or cls (the authors' code)"
    )
    input: Literal["auto", "sparse", "dense"] = option(
        "auto", help="visible patches only, or all; auto: sparse where the model can (Tab. 1h)"
    )
    init: str = option(
        "", help="start from: weights of a MAE, timm:NAME, a file with timm's keys; empty = random"
    )
    init_from: str = option(
        "", help="start from an earlier ranker: its --out folder, ranker_tiny or hf-hub:ID"
    )
    loss: str = option(
        "listmle", names=LOSSES, help="ranking loss (Tab. 1f; the last three are not the paper's)"
    )
    loss_top: int = option(
        0, low=0, help="first places that count, where the loss has them; 0 = all"
    )
    weight_decay: float = option(0.06, low=0.0, help="the optimizer's; none on biases and norms")
    label: Literal["auto", "map", "partition"] = option(
        "auto",
        absent="auto",
        help="what a list is taught: scores of one partition (the paper's), or of a map, the mean "
        "over the partitions of a view; auto: partition, of masked patches (surprise) map",
    )
    list_length: int = option(
        0,
        low=0,
        absent=0,
        help="patches of a list, drawn anew in every epoch; 0: all that a partition scored, of a "
        "map or of masked patches a quarter of the view (49 of 196)",
    )
    label_mix: tuple[str, ...] = option(
        (),
        absent=(),
        help="mix ranks within a map: METRIC=WEIGHT of the cache and of priors that need no cache, "
        "such as surprise=1,border=1 (not in the paper)",
    )
    records_per_image: int = option(
        1,
        low=0,
        help="how many of an image's views x partitions (of maps: views) an epoch shows, turn by "
        "turn; 0: all",
    )
    holdout: float = option(0.1, low=0.0, high=0.9, help="share kept for validation")
    holdout_by: Literal["auto", "unit", "image"] = option(
        "auto", help="what is held out: whole units, or images; auto: units if there are enough"
    )
    validation_records: int = option(
        5000, low=1, help="held-out records that are ranked after each epoch, at most"
    )
    validation_maps: int = option(
        500, low=1, help="held-out views whose whole score maps are compared, at most"
    )
    keep: Literal["best", "last"] = option(
        "best", help="epoch whose weights are the ranker: the best on what is held out, or the last"
    )
    patience: int = option(0, low=0, help="epochs without a better one until it ends; 0 = never")

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        # One form whatever the order and the spelling: it is part of the run's identity.
        known = [*metric_names(), *prior_names()]
        mix = named_weights(self.label_mix, known, "--label-mix")
        object.__setattr__(self, "label_mix", as_texts(mix))


@dataclass(slots=True)
class TrainedRanker:
    """What came out."""

    ranker: Ranker
    """In evaluation mode on the CPU, with the weights that are kept"""
    last: Mapping[str, Tensor]
    """State of the last epoch"""
    trained: Trained
    kept_epoch: int
    ceiling: Mapping[str, float]
    """How repeatable the labels are; empty where that cannot be measured"""
    counts: Mapping[str, int]
    started_from: InitReport | None
    notes: list[str]
    summary: Summary


def run(
    config: TrainRankerConfig,
    *,
    records: Records,
    maps: Records | None,
    folder: TrainingFolder,
    progress: Progress,
    ranks: Processes | None = None,
    device: str = "",
    loader_processes: int = 0,
) -> TrainedRanker:
    """Trains a ranker on cached records.

    Args:
        records: what is trained on; its held-out part is validated on.
        maps: records that score every patch; their held-out maps are compared with the ranker's.
        ranks: which of the processes that train together this is.
        folder: opened for this config and these records.
        device: where this rank computes; empty: what `config.device` says.
        loader_processes: read and decode ahead; 0 = when a step needs it.

    Raises:
        RequestError: unknown ranker, or nothing to train on.
    """
    started = time.monotonic()
    ranks = ranks or Processes()
    target = resolve_device(device or config.device)
    split = split_samples(records, config.holdout, config.holdout_by, config.seed)
    ranker, started_from = _make_ranker(config, records, ranks)
    notes = [*split.notes, *([started_from.summary()] if started_from else [])]
    lists = target_lists(config, records)
    check_whole_views(ranker, lists)
    step = RankerStep(ranker).to(target)
    held_out = _hold_out(config, lists, maps, split, ranks)
    notes += held_out.notes
    steps = _steps(config, lists, split.train, ranks, whole=not ranker.sparse_input)
    loader = Loader(steps, config.epochs, processes=loader_processes, pin=target.type == "cuda")
    trained = fit(
        _task(config, step, loader, steps, held_out, target),
        config,
        folder=folder,
        progress=progress,
        ranks=ranks,
    )
    last = _of_ranker(trained.last)
    kept = _of_ranker(trained.best) if config.keep == "best" else last
    ranker.load_state_dict(kept)
    summary = Summary(stage="train-ranker", done=1, n_ok=len(records.keys))
    summary.seconds = time.monotonic() - started
    return TrainedRanker(
        ranker=ranker.cpu().eval(),
        last=last,
        trained=trained,
        kept_epoch=trained.best_epoch if config.keep == "best" else len(trained.history),
        ceiling=held_out.ceiling,
        counts=_counts(split, steps, held_out),
        started_from=started_from,
        notes=notes + trained.notes,
        summary=summary,
    )


def _hold_out(
    config: TrainRankerConfig,
    lists: TargetLists,
    maps: Records | None,
    split: Split,
    ranks: Processes,
) -> HoldOut:
    return HoldOut.make(
        lists,
        None if maps is None else target_lists(config, maps),
        split,
        ranks,
        most_records=config.validation_records,
        most_maps=config.validation_maps,
    )


def _task(
    config: TrainRankerConfig,
    model: RankerStep,
    loader: Loader,
    steps: RankingSteps,
    held_out: HoldOut,
    device: torch.device,
) -> Task:
    keys, samples, order = steps.lists.records.keys, steps.samples, steps.order
    return Task(
        name="train-ranker",
        model=model,
        steps_per_epoch=order.steps_per_epoch,
        batches=loader,
        loss=_loss(config, device),
        validate=held_out.measure if held_out.num_records else None,
        judged_by=held_out.judged_by if config.keep == "best" or config.patience else "",
        patience=config.patience,
        keys=lambda epoch, step: [keys[row] for row in samples[order.step(epoch, step).sample]],
    )


def _counts(split: Split, steps: RankingSteps, held_out: HoldOut) -> dict[str, int]:
    return {
        "images": len(split.train),
        "records_per_image": steps.order.records_per_sample,
        "held_out_images": len(split.held_out),
        "held_out_records": held_out.num_records,
        "held_out_maps": held_out.num_maps,
    }


def check_config(config: TrainRankerConfig, cache: ScoreRun) -> None:
    """Checks options before anything is written.

    Raises:
        RequestError: unknown ranker, or options that exclude each other.
    """
    with torch.random.fork_rng(devices=[]):
        _create(config, cache)
    _loss(config, torch.device("cpu"))
    label = resolved_label(config, cache)
    read_mix(config.label_mix, cache, label)
    if config.list_length:
        most = cache.length if label == "map" else cache.num_scored
        if config.list_length > most:
            raise RequestError(
                f"--list-length {config.list_length} is more than the {most} patches that have a "
                "score"
            )


def resolved_label(config: TrainRankerConfig, cache: ScoreRun) -> Label:
    """Returns what `--label` comes to."""
    if config.label != "auto":
        return config.label
    return "map" if cache.scored == "masked" or config.label_mix else "partition"


def target_lists(config: TrainRankerConfig, records: Records) -> TargetLists:
    """Returns what the ranker is taught of some records.

    Raises:
        RequestError: a mix that is none of this cache.
    """
    run, label = records.run, resolved_label(config, records.run)
    length = config.list_length
    if not length and (label == "map" or run.scored == "masked"):
        length = max(run.length // 4, 1)
    mix = read_mix(config.label_mix, run, label)
    return TargetLists(records, label, length, mix, config.seed)


class RankerStep(nn.Module):
    """A ranker called with pixels as they are stored; what wraps it sees one `forward`."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns at which depth a parameter is, by its name: what timm's layer decay asks for.

        Raises:
            RequestError: that is not known of the ranker.
        """
        del coarse
        depths = self.ranker.depths()
        return lambda name: depths[name.removeprefix("ranker.")]

    def forward(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Returns the scores (B, n) of `visible` (B, n).

        Args:
            patches: uint8 (B, n, 3p²) of a ranker with sparse input, else all (B, L, 3p²).
            visible: int64 (B, n).
        """
        values = normalize_patches(patches)
        if self.ranker.sparse_input:
            return self.ranker.score_patches(values, visible)
        images = unpatchify(values, self.ranker.patch_size, self.ranker.grid)
        scores: Tensor = self.ranker(images, visible)
        return scores


def check_whole_views(ranker: Ranker, lists: TargetLists) -> None:
    """Checks that whole views are known where they are needed: by dense input, or by the label.

    Raises:
        RequestError: only the visible patches are known.
    """
    if lists.records.has_whole_views:
        return
    if lists.needs_whole_views:
        raise RequestError(
            f"--label {lists.label} takes any patches of a view, and the cache holds only the "
            "visible ones; pass the scored images with --shards, or choose --label partition"
        )
    if not ranker.sparse_input:
        raise RequestError(
            f"ranker {ranker.config['name']!r} with dense input sees whole images, and the cache "
            "holds only patches of them; pass the scored images with --shards, or choose a vit_* "
            "ranker with --input sparse"
        )


def _make_ranker(
    config: TrainRankerConfig, records: Records, ranks: Processes
) -> tuple[Ranker, InitReport | None]:
    torch.manual_seed(config.seed)
    ranker = _create(config, records.run)
    source = config.init or config.init_from
    if not source:
        return ranker, None
    report = initialize_ranker(ranker, source)
    option = "--init" if config.init else "--init-from"
    first = ranks.broadcast_object(report.sha256)
    check_same_weights(option, source, report.sha256, first, "on the first worker's machine")
    return ranker, report


def _create(config: TrainRankerConfig, cache: ScoreRun) -> Ranker:
    if config.init and config.init_from:
        raise RequestError("--init and --init-from exclude each other; pass one")
    return create_ranker(
        config.ranker,
        head=config.head,
        input=None if config.input == "auto" else config.input,
        grid=cache.grid,
        patch_size=cache.patch_size,
    )


def _steps(
    config: TrainRankerConfig, lists: TargetLists, samples: Any, ranks: Processes, *, whole: bool
) -> RankingSteps:
    per_sample = lists.records_per_sample
    order = RecordOrder(
        num_samples=len(samples),
        records_per_sample=per_sample,
        seen_per_epoch=min(config.records_per_image or per_sample, per_sample),
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return RankingSteps(lists, samples, order, ranks, config.accumulate, whole)


def _loss(
    config: TrainRankerConfig, device: torch.device
) -> Callable[[nn.Module, RankingBatch], Tensor]:
    spec = loss_by_name(config.loss)
    extra: dict[str, Any] = {"reduction": "none"}
    if config.loss_top:
        if not spec.takes_top:
            raise RequestError(f"--loss-top says nothing to --loss {config.loss}; leave it out")
        extra["top"] = config.loss_top

    def loss(model: nn.Module, batch: RankingBatch) -> Tensor:
        patches, visible, score = (values.to(device, non_blocking=True) for values in batch[:3])
        total = spec(model(patches, visible), score, **extra).sum()
        return total * 0 if batch.is_padding else total

    return loss


def _of_ranker(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("ranker."): value for name, value in state.items()}
