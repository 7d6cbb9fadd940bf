"""What another package adds at run time is used by commands and stages alike."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ltrp_core.distances import DISTANCES, DistanceSpec
from ltrp_core.losses import LOSSES, LossSpec
from ltrp_core.mae import load_mae
from ltrp_core.scoring import leave_one_out_scores
from pipeline.annotations import FORMS, AnnotationForm, open_annotations
from pipeline.commands.evaluations import patches
from pipeline.commands.run import score, train_ranker
from stages.protocols import Foreground
from stages.train_ranker import TrainRankerConfig, check_config
from stages.types import ScoreRun

RUN = ScoreRun(image_size=32, patch_size=16, views=1, partitions=1, sampler="iid")


def help_of(command) -> str:
    return CliRunner().invoke(command, ["--help"]).output


def test_a_plain_function_is_a_loss(monkeypatch) -> None:
    def spread(scores, targets, *, reduction="mean", top=None):
        del targets, reduction
        return scores.var(dim=1)

    monkeypatch.setitem(LOSSES, "spread", LossSpec(function=spread, takes_top=True))
    assert "spread" in help_of(train_ranker)
    check_config(TrainRankerConfig(ranker="vit_tiny", loss="spread", loss_top=3), RUN)


def test_a_plain_function_is_a_distance(monkeypatch) -> None:
    monkeypatch.setitem(DISTANCES, "largest", DistanceSpec(lambda d: d.abs().amax(dim=(-2, -1))))
    assert "largest" in help_of(score)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mae, visible = load_mae("mae_tiny").eval(), torch.arange(3, 10)[None]
    largest, mean = (
        leave_one_out_scores(mae, images, visible, metric=m) for m in ("largest", "l1")
    )
    assert bool((largest > mean).all())


def test_a_class_is_an_annotation_form(monkeypatch, tmp_path) -> None:
    class Everything:
        names = ("a",)
        fingerprint = "1"

        def foreground(self, key, height, width, categories="all"):
            whole = np.ones((height, width), bool)
            return Foreground(whole, ~whole, "a")

    form = AnnotationForm(open=lambda path, shape: Everything())
    monkeypatch.setitem(FORMS, "everything", form)
    assert "everything" in help_of(patches)
    source = open_annotations(tmp_path, format="everything")
    assert source.foreground("a", 2, 3).is_foreground.all()


@pytest.mark.parametrize("command", [train_ranker, score])
def test_an_unknown_name_is_refused_with_the_nearest(command) -> None:
    option = "--loss" if command is train_ranker else "--metric"
    name = "listmla" if command is train_ranker else "l11"
    result = CliRunner().invoke(command, [option, name])
    assert result.exit_code == 2
    assert "did you mean" in result.output
