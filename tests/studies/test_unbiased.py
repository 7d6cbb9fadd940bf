"""The tables of a run of `unbiased`."""

import numpy as np
import pytest

from studies.unbiased import table


def figures(**of):
    """Two sources at one keep ratio; a list has an image a value."""
    return {
        (0.5, source): {f"mosaic-{n}": float(v) for n, v in enumerate(values)}
        for source, values in of.items()
    }


def cell(line, number):
    """The figure of a cell and the ends of its interval."""
    text = line.split("|")[1:-1][number].replace("[", "").replace("]", "")
    return [float(word) for word in text.split()]


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    base = rng.random(40) / 2
    return {
        "mosaics: top": figures(fair=base, biased=base + 0.4),
        "other": figures(fair=base, biased=base),
    }


def test_the_difference_of_top_and_other_is_of_the_same_mosaics(found):
    head, _, fair, biased = table(found, 0.5)
    assert head == "| kept by | mosaics: top | other | top - other |"
    # Image by image nothing varies, though the two columns do.
    assert cell(fair, 3) == [0.0, 0.0, 0.0]
    assert cell(biased, 3) == pytest.approx([0.4, 0.4, 0.4])
    mean, low, high = cell(biased, 2)
    assert low < mean < high


def test_an_image_without_one_of_them_is_in_no_difference(found):
    del found["other"][0.5, "biased"]["mosaic-0"]
    found["mosaics: top"][0.5, "biased"]["mosaic-0"] = 99.0
    *_, biased = table(found, 0.5)
    assert cell(biased, 3) == pytest.approx([0.4, 0.4, 0.4])


def test_only_the_images_asked_for_count(found):
    *_, biased = table(found, 0.5, {"mosaic-3"})
    assert cell(biased, 2)[0] == pytest.approx(found["other"][0.5, "biased"]["mosaic-3"], abs=5e-4)
