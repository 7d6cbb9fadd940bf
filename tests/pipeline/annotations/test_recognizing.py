"""What annotations are is found by many files and the real path, or asked for."""

import numpy as np
import pytest
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.annotations import open_annotations

H, W = 20, 30
PERSON, RIM = 15, 255


def voc_palette():
    """PASCAL VOC's colors as its development kit makes them, bit by bit."""
    colors = []
    for index in range(256):
        color, bits = [0, 0, 0], index
        for place in range(7, -1, -1):
            for channel in range(3):
                color[channel] |= (bits >> channel & 1) << place
            bits >>= 3
        colors += color
    return colors


def save(path, palette=None, rim=RIM):
    values = np.zeros((H, W), np.uint8)
    values[5:10, 10:20] = PERSON
    values[5, 10:20] = rim
    image = Image.fromarray(values)
    if palette:
        image.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def counted(source, key="a"):
    found = source.foreground(key, H, W)
    return source.format, int(found.is_foreground.sum()), int(found.is_ignored.sum())


AS_VOC = ("voc-masks", 40, 10)
"""The rim does not count."""


def test_pngs_of_ade20k_are_known_beside_a_preview_and_what_macos_leaves(tmp_path):
    for name in ("ADE_val_1.png", "ADE_val_2.png", "preview.png"):
        save(tmp_path / name, rim=0)
    (tmp_path / "._ADE_val_1.png").write_bytes(b"of the system")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX/x.png").write_bytes(b"of the system")
    source = open_annotations(tmp_path)
    assert source.format == "ade20k"
    assert source.names == {"ADE_val_1", "ADE_val_2", "preview"}
    assert source.notes == [
        f"took {tmp_path} for annotations of format ade20k: 2 of 3 PNGs are named ADE_...; "
        "--format chooses another"
    ]


def test_what_may_be_of_two_kinds_is_asked_for(tmp_path):
    for name in ("ADE_val_1.png", "x.png", "y.png"):
        save(tmp_path / "mixed" / name)
    for name, palette in (("a.png", voc_palette()), ("b.png", None)):
        save(tmp_path / "some" / name, palette)
    save(tmp_path / "SegmentationObject/a.png", voc_palette())
    for folder, says in (
        ("mixed", "1 of 3 PNGs are named ADE_"),
        ("some", r"1 of 2 PNGs looked at have PASCAL VOC's palette, e\.g\. a\.png"),
        ("SegmentationObject", "numbers objects; the classes are in SegmentationClass"),
    ):
        with pytest.raises(RequestError, match=f"{folder}: .*{says}.*; pass --format"):
            open_annotations(tmp_path / folder)
        assert open_annotations(tmp_path / folder, format="masks").notes == []


@pytest.mark.parametrize("name", ["SegmentationClass", "SegmentationClassAug"])
def test_classes_of_voc_are_known_however_their_folder_is_spelled(tmp_path, monkeypatch, name):
    folder = tmp_path / "VOC2012" / name
    save(folder / "a.png")  # gray, as those that SBD adds
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "blobs").mkdir()
    save(tmp_path / "blobs/a.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).symlink_to(tmp_path / "blobs")
    monkeypatch.chdir(folder)
    for path in (folder, tmp_path / "link", tmp_path / "VOC2012", tmp_path / "other" / name):
        assert counted(open_annotations(path)) == AS_VOC
    assert counted(open_annotations(type(folder)("."))) == AS_VOC
    assert counted(open_annotations(folder / ".." / name)) == AS_VOC


def test_classes_of_voc_are_known_by_their_palette_whatever_the_folder_is_called(tmp_path):
    save(tmp_path / "labels/a.png", voc_palette())
    source = open_annotations(tmp_path / "labels")
    assert counted(source) == AS_VOC
    assert "1 of 1 PNGs looked at have PASCAL VOC's palette" in source.notes[0]
    save(tmp_path / "own/a.png", [0, 0, 0] + [9, 9, 9] * 255)
    assert counted(open_annotations(tmp_path / "own")) == ("masks", 50, 0)


def test_a_stray_xml_beside_masks_is_no_annotation_but_one_of_voc_is(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "catalog.xml").write_text("<catalog/>")
    (tmp_path / "._b.xml").write_bytes(b"of the system")
    assert open_annotations(tmp_path).format == "masks"
    (tmp_path / "catalog.xml").write_text("<annotation/>")
    assert open_annotations(tmp_path).format == "voc-boxes"


def test_a_folder_of_jpegs_says_why_they_are_no_masks(tmp_path):
    Image.new("L", (W, H)).save(tmp_path / "a.jpg")
    with pytest.raises(RequestError, match=r"neither XML nor PNG.*JPEGs are none"):
        open_annotations(tmp_path)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    with pytest.raises(RequestError, match=r"a\.png is no readable PNG"):
        open_annotations(tmp_path).foreground("a", H, W)
