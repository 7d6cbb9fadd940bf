import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from ltrp_core.errors import RequestError
from ltrp_core.views import (
    View,
    denormalize,
    make_view,
    normalize,
    render_mask,
    render_view,
)

sides = st.integers(1, 3000)


@given(st.text(max_size=10), st.integers(0, 9), sides, sides, st.integers(0, 99))
def test_a_training_view_lies_in_the_image_and_is_a_pure_function(key, number, height, width, seed):
    view = make_view("train", key, number, height, width, seed)
    assert 0 <= view.top <= view.top + view.height <= height
    assert 0 <= view.left <= view.left + view.width <= width
    assert view.height >= 1
    assert view.width >= 1
    assert view == make_view("train", key, number, height, width, seed)


def test_training_views_have_the_recipes_scale_ratio_and_flips():
    views = [make_view("train", "k", number, 400, 500, 0) for number in range(3000)]
    scales = np.array([view.height * view.width / (400 * 500) for view in views])
    ratios = np.array([view.width / view.height for view in views])
    assert scales.min() > 0.19
    assert scales.max() <= 1.0
    assert 0.5 < scales.mean() < 0.62
    assert ratios.min() > 0.73
    assert ratios.max() < 1.36
    # Not quite symmetric: wide boxes fit a wide image more often than tall ones.
    assert abs(np.log(ratios).mean()) < 0.06
    assert 0.46 < np.mean([view.flip for view in views]) < 0.54


def test_an_image_too_narrow_for_the_ratios_gives_its_largest_allowed_crop():
    view = make_view("train", "k", 0, 1000, 10, 0)
    assert (view.height, view.width) == (13, 10)
    view = make_view("train", "k", 0, 10, 1000, 0)
    assert (view.height, view.width) == (10, 13)


def test_the_evaluation_view_is_the_center_crop():
    assert make_view("eval", "k", 5, 256, 256, 1) == View(top=16, left=16, height=224, width=224)
    assert make_view("eval", "k", 0, 512, 768, 0) == View(top=32, left=160, height=448, width=448)


def test_pixels_are_those_of_pillow_but_for_rounding():
    image = data.astronaut()
    view = View(top=30, left=100, height=300, width=260)
    ours = render_view(image, view, 224).permute(1, 2, 0).numpy()
    box = Image.fromarray(image).crop((100, 30, 360, 330))
    theirs = np.asarray(box.resize((224, 224), Image.Resampling.BICUBIC))
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 3
    assert (difference > 1).mean() < 1e-3


def test_a_flip_mirrors_pixels_and_mask_alike():
    image = data.astronaut()
    mask = image[..., 0] > 128
    plain = View(top=10, left=20, height=200, width=300)
    flipped = View(top=10, left=20, height=200, width=300, flip=True)
    assert torch.equal(render_view(image, flipped, 64), render_view(image, plain, 64).flip(-1))
    assert np.array_equal(render_mask(mask, flipped, 64), render_mask(mask, plain, 64)[:, ::-1])


def test_a_mask_follows_the_pixels():
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    image[120:200, 50:220] = 255
    view = View(top=40, left=10, height=224, width=280)
    bright = render_view(image, view, 224)[0].numpy() > 127
    assert (bright != render_mask(image[..., 0] > 127, view, 224)).mean() < 0.005


def test_a_mask_at_the_views_own_size_is_the_crop_itself():
    mask = np.random.default_rng(0).random((60, 70)) < 0.5
    view = View(top=5, left=9, height=48, width=48)
    assert np.array_equal(render_mask(mask, view, 48), mask[5:53, 9:57])


def test_normalization_is_undone():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1)
    assert torch.equal(denormalize(normalize(pixels)), pixels)


def test_a_view_of_another_image_is_refused():
    with pytest.raises(RequestError, match="is this the image that was scored"):
        render_view(np.zeros((10, 10, 3), np.uint8), View(top=0, left=0, height=11, width=5), 8)
    with pytest.raises(RequestError, match="has no pixels"):
        make_view("eval", "k", 0, 0, 10, 0)
