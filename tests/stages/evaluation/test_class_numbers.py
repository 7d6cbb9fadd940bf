"""Labels mean the classifier's classes, or the evaluation ends before a figure is wrong."""

import pytest

from ltrp_core.errors import RequestError
from stages.evaluation.class_numbers import class_numbers


class Labels:
    def __init__(self, classes, is_multi=False):
        self.classes, self.is_multi = classes, is_multi

    def of(self, key):
        return None


def numbers(classes, count=1000, **options):
    return class_numbers(Labels(classes, **options), count, "m")


def test_bare_numbers_are_the_classifiers_own():
    found, note = numbers([str(n) for n in range(998)])
    assert found == list(range(998))
    assert "taken for those of m: 0 to 999" in note
    with pytest.raises(RequestError, match="labeled 1003, and m has 1000 classes, 0 to 999"):
        numbers([str(n) for n in range(1004)])


def test_synsets_are_found_by_name_whatever_their_order_and_number():
    found, note = numbers(["n01440764", "n15075141_toilet_tissue", "n01443537 goldfish"])
    assert found == [0, 999, 1]
    assert "3 classes found by their synset among the 1000" in note


def test_other_names_count_by_their_place_if_there_are_as_many():
    assert numbers(["cat", "dog", "owl"], 3)[0] == [0, 1, 2]
    assert numbers(["n01440764", "n01443537", "n15075141"], 3)[0] == [0, 1, 2]


@pytest.mark.parametrize(
    "classes", [["cat", "dog"], ["n01440764", "dog"], ["n00000001", "n01440764"]]
)
def test_names_of_another_number_of_classes_are_refused(classes):
    with pytest.raises(
        RequestError, match=r"have 2 classes .*m has 1000: a number would mean anot"
    ):
        numbers(classes)


def test_labels_with_several_classes_per_image_are_refused():
    with pytest.raises(RequestError, match="several of these labels, and top-1 needs exactly one"):
        numbers(["cat", "dog"], 2, is_multi=True)
