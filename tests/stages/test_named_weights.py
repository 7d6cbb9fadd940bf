"""NAME=WEIGHT as people type it: one form whatever the order, and every slip named."""

import pytest

from ltrp_core.errors import RequestError
from stages.named_weights import as_texts, named_weights

KNOWN = ["surprise", "border", "center"]


@pytest.mark.parametrize(
    "given",
    [
        ("center=.5", "surprise=1"),
        ("surprise=1.0,center=0.50",),
        (" surprise = 1 , center=5e-1", "border=0"),
    ],
)
def test_one_form_whatever_was_typed(given):
    assert as_texts(named_weights(given, KNOWN, "--mix")) == ("surprise=1", "center=0.5")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("boarder=1",), "did you mean border"),
        (("border",), "--mix 'border' is not of the form NAME=WEIGHT, such as border=0.5"),
        (("border=much",), "not of the form"),
        (("border=1,border=2",), "--mix border is given twice"),
        (("border=-1",), r"out of range 0 \.\. 100"),
        (("border=inf",), "out of range"),
        (("",), "unknown mix ''"),
    ],
)
def test_a_slip_is_named(given, message):
    with pytest.raises(RequestError, match=message):
        named_weights(given, KNOWN, "--mix")
