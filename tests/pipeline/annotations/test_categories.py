"""The lists follow from their own evidence, which names classes that ImageNet-1K really has."""

import itertools
import os
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from ltrp_core.errors import RequestError
from pipeline.annotations.categories import (
    LISTS,
    category_list,
    is_member,
    select_categories,
    select_names,
)

INFO = ImageNetInfo("imagenet-1k")
CLASSES = {INFO.index_to_label_name(index) for index in range(1000)}
UNSEEN_COCO = """fire hydrant, stop sign, giraffe, suitcase, frisbee, snowboard, kite, baseball bat,
baseball glove, skateboard, surfboard, fork, carrot, donut, cake, scissors, toothbrush, person,
potted plant"""


NOUNS = Path(os.environ.get("WNSEARCHDIR", "/usr/share/wordnet"), "data.noun")
"""WordNet 3.0's nouns, where they are installed (Debian: wordnet-base)."""


def hypernyms():
    """Synset -> those right above it, of all nouns."""
    above = {}
    for line in NOUNS.read_text("utf-8").splitlines():
        if line.startswith("  "):
            continue  # the license
        words = line.partition(" | ")[0].split()
        count = int(words[3], 16)
        pointers = words[4 + 2 * count :]
        above[f"n{words[0]}"] = [
            f"n{pointers[place + 1]}"
            for place in range(1, len(pointers), 4)
            if pointers[place] in ("@", "@i") and pointers[place + 2] == "n"
        ]
    return above


def names(group, name):
    return {category.name for category in select_categories(name, group)}


@pytest.mark.parametrize("name", LISTS)
def test_a_category_is_learned_exactly_if_its_evidence_says_so(name):
    for category in category_list(name):
        has_evidence = bool(category.chain or category.like) and category.exception is None
        assert category.group == ("learned" if has_evidence else "unseen"), category.name


@pytest.mark.parametrize("name", LISTS)
def test_evidence_leads_from_a_class_of_imagenet_to_the_category(name):
    for category in category_list(name):
        if category.chain:
            assert category.chain[0] in CLASSES, category.name
            assert category.chain[-1] == category.synset, category.name
            # No class lies below another class: what is on the way up is not in ImageNet-1K.
            assert not CLASSES & set(category.chain[1:-1]), category.name
        assert set(category.like) <= CLASSES, category.name
        assert not (category.chain and category.like), category.name


@pytest.mark.skipif(not NOUNS.is_file(), reason="WordNet 3.0 is not installed (wordnet-base)")
def test_the_lists_follow_anew_from_wordnet():
    """Learned: a class of ImageNet-1K is the category's synset, or lies below it."""
    above = hypernyms()
    reached, front = set(CLASSES), set(CLASSES)
    while front:
        front = {up for synset in front for up in above[synset]} - reached
        reached |= front
    for name in LISTS:
        for category in category_list(name):
            for lower, upper in itertools.pairwise(category.chain):
                assert upper in above[lower], (category.name, lower, upper)
            if category.synset is None:
                assert category.group == "unseen" or category.like, category.name
                continue
            assert category.synset in above, category.name
            is_reached = category.synset in reached and category.exception is None
            by_sight = bool(category.like)
            assert not (is_reached and by_sight), category.name
            assert category.group == ("learned" if is_reached or by_sight else "unseen"), (
                category.name
            )


def test_nothing_unseen_lies_above_a_class_of_imagenet():
    every = [category for name in LISTS for category in category_list(name)]
    above = {synset for category in every for synset in category.chain}
    for category in every:
        if category.group == "unseen" and category.exception is None:
            assert category.synset not in above | CLASSES, category.name


def test_a_synset_stands_in_the_same_group_in_every_list():
    groups = {}
    for name in LISTS:
        for category in category_list(name):
            if category.synset is not None:
                assert groups.setdefault(category.synset, category.group) == category.group


def test_what_has_the_very_name_of_a_class_is_learned():
    lemmas = {
        lemma.strip().lower()
        for synset in CLASSES
        for lemma in INFO.label_name_to_description(synset, detailed=False).split(",")
    }
    # The class called kite is a bird.
    same_name = {
        category.name
        for name in LISTS
        for category in category_list(name)
        if category.group == "unseen" and category.name in lemmas
    }
    assert same_name == {"kite"}


def test_the_lists_have_the_sizes_of_their_data_sets():
    assert [len(category_list(name)) for name in LISTS] == [80, 20, 100]
    assert sorted(category.id for category in category_list("voc20")) == list(range(1, 21))
    ids = [category.id for category in category_list("ade20k")]
    assert len(set(ids)) == 100
    assert min(ids) >= 1
    assert max(ids) <= 150


def test_unseen_of_coco_and_voc_are_those_of_the_method():
    assert names("unseen", "coco80") == {n.strip() for n in UNSEEN_COCO.split(",")}
    arguable = {"stop sign", "cake", "person", "potted plant"}
    assert names("unseen-strict", "coco80") == names("unseen", "coco80") - arguable
    assert names("unseen", "voc20") == {"person", "pottedplant"}
    assert names("learned", "voc20") | names("unseen", "voc20") == names("all", "voc20")


def test_a_group_without_members_and_an_unknown_group_are_refused():
    with pytest.raises(RequestError, match="no category of voc20 is unseen-strict"):
        select_categories("voc20", "unseen-strict")
    with pytest.raises(RequestError, match="did you mean unseen"):
        is_member(category_list("voc20")[0], "unsen")


def test_names_of_no_list_have_no_group_but_all(tmp_path):
    assert select_names(["widget"], "all", tmp_path) == {"widget"}
    assert select_names(["aeroplane", "person"], "unseen", tmp_path) == {"person"}
    with pytest.raises(RequestError, match="not for 'widget'; pass --categories all"):
        select_names(["widget", "person"], "unseen", tmp_path)
