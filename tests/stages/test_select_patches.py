"""The stage `select` on decoded images: every source, every view, any batch size."""

import dataclasses
import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ltrp_core import LTRPSelector
from ltrp_core.errors import RequestError
from ltrp_core.rankers import create_ranker, load_ranker, save_ranker
from ltrp_core.selection import num_kept, select_patches
from ltrp_core.selectors import SELECTORS, Selector, SelectorSpec
from ltrp_core.selectors.border import border_contrast
from ltrp_core.selectors.references import center_scores, patch_variance, random_scores
from ltrp_core.views import View, make_view, normalize, render_view
from oracles import priors as oracle
from stages.options import identity
from stages.protocols import Sample
from stages.select_patches import SelectConfig, UnitSelector
from stages.selection_arrays import selection_fields

GRID, PATCH = 6, 8


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ranker")
    save_ranker(create_ranker("vit_tiny", grid=GRID, patch_size=PATCH), folder, {})
    return str(folder)


@pytest.fixture(scope="module")
def samples(photographs):
    return [
        Sample(name, np.array(Image.open(io.BytesIO(content)).convert("RGB")))
        for name, content in sorted(photographs.items())[:5]
    ]


def selected(samples, **options):
    """All rows that the stage makes of the samples."""
    stage = UnitSelector(SelectConfig(device="cpu", **options))
    parts = list(stage.batches(map(stage.prepare, samples)))
    assert all(set(part) == set(stage.fields) for part in parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_selections_are_what_the_selector_in_memory_keeps(ranker_folder, samples):
    arrays = selected(samples, ranker=ranker_folder, keep_ratio=(0.25, 0.5))
    selector = LTRPSelector(load_ranker(ranker_folder))
    for row, sample in enumerate(samples):
        view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
        image = normalize(render_view(sample.image, view, GRID * PATCH))[None]
        for ratio in (0.25, 0.5):
            kept = arrays[f"kept_{ratio:g}"][row]
            assert kept.tolist() == selector(image, ratio)[0].tolist()
        scores = selector.ranker(image)[0].half().numpy()
        np.testing.assert_array_equal(arrays["score"][row], scores)
    assert arrays["score"].dtype == np.float16
    assert arrays["key"].tolist() == [sample.key for sample in samples]


@pytest.mark.parametrize("crop", ["eval", "resize", "train"])
def test_arrays_do_not_depend_on_the_batch(ranker_folder, samples, crop):
    one, many = (
        selected(samples, ranker=ranker_folder, crop=crop, batch_size=size) for size in (1, 4)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], many[name])


def test_resize_sees_the_whole_image_squashed(ranker_folder, samples):
    arrays = selected(samples[:1], ranker=ranker_folder, crop="resize", keep_ratio=(0.5,))
    image = samples[0].image
    height, width = image.shape[:2]
    assert height != width
    assert arrays["crop"][0, 0].tolist() == [0, 0, height, width]
    view = View(top=0, left=0, height=height, width=width)
    pixels = normalize(render_view(image, view, GRID * PATCH))[None]
    assert arrays["kept_0.5"][0].tolist() == (
        LTRPSelector(load_ranker(ranker_folder))(pixels, 0.5)[0].tolist()
    )


def test_without_a_crop_the_pixels_are_the_images_own(ranker_folder, samples):
    side = GRID * PATCH
    square = dataclasses.replace(samples[0], image=samples[0].image[:side, :side].copy())
    arrays = selected([square], ranker=ranker_folder, crop="none", keep_ratio=(0.5,))
    pixels = torch.from_numpy(square.image).permute(2, 0, 1)
    assert arrays["kept_0.5"][0].tolist() == (
        LTRPSelector(load_ranker(ranker_folder))(normalize(pixels)[None], 0.5)[0].tolist()
    )
    assert arrays["crop"][0, 0].tolist() == [0, 0, side, side]
    with pytest.raises(RequestError, match=rf"{samples[0].key}' is 180 x 150 px, and --crop none"):
        selected(samples[:2], ranker=ranker_folder, crop="none")


def test_a_ranker_selects_on_another_image_size(ranker_folder, samples):
    arrays = selected(samples[:2], ranker=ranker_folder, image_size=136, keep_ratio=(0.5,))
    assert arrays["score"].shape == (2, 17**2)
    assert arrays["kept_0.5"].dtype == np.uint16
    selector = LTRPSelector(load_ranker(ranker_folder, grid=17))
    view = make_view("eval", samples[1].key, 0, *samples[1].image.shape[:2], 0)
    image = normalize(render_view(samples[1].image, view, 136))[None]
    assert arrays["kept_0.5"][1].tolist() == selector(image, 0.5)[0].tolist()


@pytest.mark.parametrize("name", ["random", "center", "patch-variance"])
def test_a_baseline_is_selected_as_a_ranker_is(samples, name):
    arrays = selected(
        samples, baseline=name, image_size=48, patch_size=8, keep_ratio=(0.3,), seed=3
    )
    for row, sample in enumerate(samples):
        view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
        image = normalize(render_view(sample.image, view, 48))[None]
        scores = {
            "random": random_scores(sample.key, 36, draw=0, seed=3)[None],
            "center": center_scores(6)[None],
            "patch-variance": patch_variance(image, 8),
        }[name]
        patches = image.reshape(1, 3, 6, 8, 6, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, 36, -1)
        kept = select_patches(scores, num_kept(0.3, 36), patches=patches)
        assert arrays["kept_0.3"][row].tolist() == kept[0].tolist()
        np.testing.assert_array_equal(arrays["score"][row], scores[0].half().numpy())
        np.testing.assert_array_equal(
            arrays["border_contrast"][row], border_contrast(image, 8)[0].half().numpy()
        )
    assert set(arrays) >= {"score", "patch_variance", "border_contrast"}
    assert "plain_score" not in arrays


@pytest.mark.parametrize("homogeneous", [0.0, 0.2])
def test_priors_are_added_as_ranks_and_the_plain_scores_stand_beside(
    ranker_folder, samples, homogeneous
):
    options = {"ranker": ranker_folder, "keep_ratio": (0.3,), "homogeneous": homogeneous}
    plain = selected(samples, **options)
    arrays = selected(samples, prior=("border=1", "center=0.5"), **options)
    np.testing.assert_array_equal(arrays["plain_score"], plain["score"])
    ranker = load_ranker(ranker_folder)
    for row, sample in enumerate(samples):
        view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
        image = normalize(render_view(sample.image, view, GRID * PATCH))[None]
        maps = {"border": border_contrast(image, PATCH)[0], "center": center_scores(GRID)}
        total = oracle.with_priors(
            ranker(image)[0].tolist(),
            {name: values.tolist() for name, values in maps.items()},
            {"border": Fraction(1), "center": Fraction(1, 2)},
        )
        scores = torch.tensor([[float(value) for value in total]], dtype=torch.float64)
        np.testing.assert_array_equal(arrays["score"][row], scores[0].half().numpy())
        patches = image.reshape(1, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1)
        kept = select_patches(
            scores,
            num_kept(0.3, GRID**2),
            patches=patches.reshape(1, GRID**2, -1),
            homogeneous=homogeneous,
        )
        assert arrays["kept_0.3"][row].tolist() == kept[0].tolist()
    assert not np.array_equal(arrays["kept_0.3"], plain["kept_0.3"])


def test_priors_do_not_depend_on_the_batch(ranker_folder, samples):
    one, many = (
        selected(samples, ranker=ranker_folder, prior=("border=0.7",), batch_size=size)
        for size in (1, 4)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], many[name])


def test_without_a_prior_the_run_is_what_it_was_and_its_spelling_does_not_matter():
    assert "prior" not in identity(SelectConfig(selector="center"))
    assert identity(SelectConfig(selector="center", prior=("border=0",))) == (
        identity(SelectConfig(selector="center"))
    )
    first = SelectConfig(selector="center", prior=("border=1.0", "patch-variance=.5"))
    second = SelectConfig(selector="center", prior=("patch-variance=0.50", "border=1"))
    assert identity(first) == identity(second)
    assert identity(first)["prior"] == ["patch-variance=0.5", "border=1"]


class LastPatches(Selector):
    """Has no scores."""

    def select(self, images, keys, keeps):
        return [torch.arange(k).expand(len(keys), -1) for k in keeps]


def test_a_selector_without_scores_takes_no_prior(monkeypatch):
    spec = SelectorSpec(make=lambda options: LastPatches(48, 8), help="")
    monkeypatch.setitem(SELECTORS, "last", spec)
    assert "score" not in UnitSelector(SelectConfig(selector="last")).fields
    with pytest.raises(RequestError, match="LastPatches chooses patches without scores"):
        UnitSelector(SelectConfig(selector="last", prior=("border=1",)))


def test_the_paper_s_sizes_hold_where_a_baseline_has_no_model(samples):
    stage = UnitSelector(SelectConfig(baseline="center"))
    assert stage.fields["score"].shape == (196,)
    assert stage.prepare(samples[0]).pixels.shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of --ranker, --teacher, --baseline, --selector; none was given"),
        ({"ranker": "r", "baseline": "center"}, "--ranker and --baseline was given"),
        ({"baseline": "centre"}, "did you mean center"),
        ({"baseline": "center", "keep_ratio": (0.5, 0.5)}, "given twice"),
        ({"baseline": "center", "prior": ("boarder=1",)}, "did you mean border"),
        ({"baseline": "center", "prior": ("ranker=1",)}, "prior 'ranker'"),
        ({"baseline": "center", "prior": ("border",)}, "not of the form NAME=WEIGHT"),
        ({"baseline": "center", "prior": ("border=much",)}, "such as border=0.5"),
        ({"baseline": "center", "prior": ("border=1", "border=2")}, "border is given twice"),
        ({"baseline": "center", "prior": ("border=-1",)}, r"out of range 0 \.\. 100"),
        ({"baseline": "center", "prior": ("border=nan",)}, "out of range"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        SelectConfig(**options)


def test_sizes_that_do_not_fit_are_refused(ranker_folder):
    for options, message in (
        ({"image_size": 50}, "--image-size 50 does not divide into patches of 8 px"),
        ({"patch_size": 16}, "--patch-size is 16, and the ranker has patches of 8 px"),
    ):
        with pytest.raises(RequestError, match=message):
            UnitSelector(SelectConfig(ranker=ranker_folder, **options))
    with pytest.raises(RequestError, match="--image-size 8 does not divide"):
        UnitSelector(SelectConfig(baseline="center", image_size=8))
    with pytest.raises(RequestError, match="k = 0"):
        selection_fields((0.001,), 196)
