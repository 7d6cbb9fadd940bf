"""Annotations that are a file per image: PASCAL VOC, ADE20K and masks."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ltrp_core.errors import RequestError
from pipeline.annotations import open_annotations
from pipeline.annotations.categories import category_list
from pipeline.annotations.voc_boxes import parse_xml

H, W = 20, 30
PERSON, CAR = 15, 7
"""Values in VOC's class images."""


def save_png(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([i for value in range(256) for i in (value, value // 2, 0)])
    image.save(path)
    return path


def save_xml(path, objects, height=H, width=W):
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{name}</name><difficult>{int(i == 1)}</difficult><bndbox><xmin>{box[0]}"
        f"</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>20"
        "</ymax></bndbox></part></object>"
        for i, (name, box) in enumerate(objects)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>x.jpg</filename>{size}{items}</annotation>")
    return path


def classes(value=PERSON, rim=255):
    values = np.zeros((H, W), np.uint8)
    values[5:10, 10:20] = value
    values[5, 10:20] = rim
    values[0:3, 0:3] = CAR
    return values


def test_boxes_of_voc_begin_at_one_hold_their_corners_and_have_no_parts(tmp_path):
    save_xml(tmp_path / "a.xml", [("car", (1, 1, 3, 2)), ("person", ("11.4", 6, 30, 20))])
    found = open_annotations(tmp_path).foreground("a", H, W)
    expected = np.zeros((H, W), dtype=bool)
    expected[0:2, 0:3] = expected[5:20, 10:30] = True
    assert np.array_equal(found.is_foreground, expected)
    assert not found.is_ignored.any()
    unseen = open_annotations(tmp_path).foreground("a", H, W, "unseen")
    expected[:5] = False
    assert np.array_equal(unseen.is_foreground, expected)


def test_class_images_of_voc_ignore_the_rim(tmp_path):
    save_png(tmp_path / "a.png", classes(), "P")
    source = open_annotations(tmp_path, format="voc-masks")
    found = source.foreground("a", H, W)
    assert found.is_foreground.sum() == 4 * 10 + 9
    assert found.is_ignored.sum() == 10
    assert source.foreground("a", H, W, "unseen").is_foreground.sum() == 40
    assert source.foreground("a", H, W, "learned").is_foreground.sum() == 9


def test_of_ade20k_things_are_foreground_stuff_is_not_and_unlabeled_is_ignored(tmp_path):
    ids = {category.name: category.id for category in category_list("ade20k")}
    values = np.full((H, W), 3, np.uint8)  # sky
    values[:4] = ids["car"]
    values[4:8] = ids["flag"]
    values[8:10] = 0
    save_png(tmp_path / "annotations/validation/ADE_val_00000001.png", values)
    source = open_annotations(tmp_path)
    assert source.format == "ade20k"
    for key in ("validation/ADE_val_00000001", "ADE_val_00000001"):
        found = source.foreground(key, H, W)
        assert np.array_equal(found.is_foreground, (values == 21) | (values == 150))
        assert np.array_equal(found.is_ignored, values == 0)
    unseen = source.foreground("validation/ADE_val_00000001", H, W, "unseen-strict")
    assert np.array_equal(unseen.is_foreground, values == 150)


@pytest.mark.parametrize("kind", ["gray", "palette", "one bit", "16 bit", "color", "alpha"])
def test_a_mask_of_any_kind_is_foreground_where_it_is_not_black(tmp_path, kind):
    expected = np.zeros((H, W), dtype=bool)
    expected[3:9, 4:12] = True
    gray = expected.astype(np.uint8)
    values = {
        "gray": gray,
        "palette": gray,
        "one bit": expected,
        "16 bit": gray.astype(np.uint16) * 256,
        "color": np.stack([gray * 0, gray * 0, gray], axis=2),
        "alpha": np.stack([gray, gray, gray, np.full_like(gray, 255)], axis=2),
    }[kind]
    save_png(tmp_path / "deep/a.b.png", values, "P" if kind == "palette" else None)
    found = open_annotations(tmp_path).foreground("deep/a.b", H, W)
    assert np.array_equal(found.is_foreground, expected)
    assert not found.is_ignored.any()


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_of_a_palette_the_color_decides_not_the_index(tmp_path, bits):
    expected = np.zeros((H, W), dtype=bool)
    expected[3:9, 4:12] = True
    image = Image.fromarray((~expected).astype(np.uint8))  # index 0 is what is marked
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9][: 3 * min(2**bits, 3)])
    image.save(tmp_path / "a.png", bits=bits)
    found = open_annotations(tmp_path).foreground("a", H, W)
    assert np.array_equal(found.is_foreground, expected)


def transparent(kind, shown):
    """Writes a mask whose transparency says where it shows anything."""
    gray, alpha = np.full((H, W), 255, np.uint8), shown.astype(np.uint8) * 255
    if kind == "LA":
        return Image.fromarray(np.stack([gray, alpha], axis=2))
    if kind == "RGBA":
        return Image.fromarray(np.stack([gray, gray, gray, alpha], axis=2))
    image = Image.fromarray(np.where(shown, 255, 77).astype(np.uint8))
    if kind == "palette":
        image = image.convert("P")
    image.info["transparency"] = 77
    return image


@pytest.mark.parametrize("kind", ["RGBA", "LA", "gray", "palette"])
def test_what_is_fully_transparent_is_no_foreground(tmp_path, kind):
    expected = np.zeros((H, W), dtype=bool)
    expected[3:9, 4:12] = True
    transparent(kind, expected).save(
        tmp_path / "a.png", transparency=77 if kind in "gray palette" else None
    )
    found = open_annotations(tmp_path).foreground("a", H, W)
    assert np.array_equal(found.is_foreground, expected)


def test_masks_that_contradict_themselves_are_refused(tmp_path):
    shown = np.zeros((H, W), np.uint8)
    shown[3:9] = 255
    black, white = np.zeros_like(shown), np.full_like(shown, 255)
    for channels, says in (
        ((black, black, black, shown), "objects are in its transparency alone"),
        ((white, shown, white, black), "transparent everywhere"),
    ):
        save_png(tmp_path / "a.png", np.stack(channels, axis=2))
        with pytest.raises(RequestError, match=rf"a\.png .*{says}"):
            open_annotations(tmp_path).foreground("a", H, W)


def png(bits, kind, rows):
    """A PNG by its specification, for what Pillow does not write: gray of 4 bits, 16 of a color."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", W, H, bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_class_numbers_of_few_bits_are_not_stretched(tmp_path):
    rows = [bytes([0x10] * (W // 2)) for _ in range(H)]  # classes 1 and 0 in turns
    (tmp_path / "a.png").write_bytes(png(4, 0, rows))
    source = open_annotations(tmp_path, format="voc-masks")
    assert source.foreground("a", H, W, "learned").is_foreground.sum() == H * W // 2
    assert source.foreground("a", H, W, "unseen").is_foreground.sum() == 0
    (tmp_path / "a.png").write_bytes(png(4, 0, [bytes([0xF0] * (W // 2)) for _ in range(H)]))
    assert source.foreground("a", H, W, "unseen").is_foreground.sum() == H * W // 2  # person


def test_colors_of_16_bits_whose_low_half_would_be_lost_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(16, 2, [b"\0\7" * 3 * W for _ in range(H)]))
    with pytest.raises(RequestError, match=r"a\.png has colors of 16 bits"):
        open_annotations(tmp_path).foreground("a", H, W)


def test_a_mask_of_an_image_that_was_turned_is_refused_with_the_reason(tmp_path):
    save_png(tmp_path / "a.png", classes())
    with pytest.raises(RequestError, match=r"30 x 20 px .*20 x 30 px .*EXIF orientation"):
        open_annotations(tmp_path).foreground("a", W, H)


def test_files_in_upper_case_and_in_linked_folders_are_annotations_too(tmp_path):
    save_png(tmp_path / "store/b.png", classes())
    save_png(tmp_path / "m/a.png", classes()).rename(tmp_path / "m/a.PNG")
    (tmp_path / "m/linked").symlink_to(tmp_path / "store")
    (tmp_path / "m/circle").symlink_to(tmp_path / "m")
    source = open_annotations(tmp_path / "m")
    assert source.foreground("a", H, W) is not None
    assert source.foreground("linked/b", H, W) is not None
    assert source.names == {"a", "linked/b"}


def test_two_files_for_one_image_are_refused(tmp_path):
    save_png(tmp_path / "a.png", classes()).rename(tmp_path / "a.PNG")
    save_png(tmp_path / "a.png", classes())
    with pytest.raises(RequestError, match=r"a\.PNG and .*a\.png annotate one image"):
        open_annotations(tmp_path).foreground("a", H, W)


def test_an_annotation_that_cannot_be_read_is_named(tmp_path):
    save_png(tmp_path / "b.png", classes())
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    source = open_annotations(tmp_path)
    with pytest.raises(RequestError, match=r"a\.png is no readable PNG"):
        source.foreground("a", H, W)
    with pytest.raises(RequestError, match=r"a\.png cannot be read"):
        _ = source.fingerprint


def test_names_that_are_no_text_do_not_end_an_evaluation(tmp_path):
    save_png(tmp_path / "a.png", classes())
    os.link(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/\xff.png")
    source = open_annotations(tmp_path)
    assert source.foreground("a", H, W) is not None
    assert len(source.fingerprint) > 64


def test_keys_join_by_the_whole_name_or_its_last_part(tmp_path):
    save_png(tmp_path / "a.png", classes())
    source = open_annotations(tmp_path)
    assert source.foreground("n01440764/a", H, W) is not None
    assert source.foreground("a", H, W) is not None
    assert source.foreground("b", H, W) is None
    assert source.foreground("../a", H, W) is not None
    assert source.foreground("a/..", H, W) is None


def test_the_format_is_found_by_what_is_there(tmp_path):
    year = tmp_path / "VOC2012"
    save_xml(year / "Annotations/a.xml", [])
    assert open_annotations(year).format == "voc-boxes"
    save_png(year / "SegmentationClass/a.png", classes())
    assert open_annotations(year).format == "voc-masks"
    assert open_annotations(year, shape="boxes").format == "voc-boxes"
    assert open_annotations(year / "Annotations").format == "voc-boxes"
    assert open_annotations(year / "SegmentationClass").format == "voc-masks"
    assert open_annotations(year, format="voc-boxes").foreground("a", H, W) is not None
    save_png(tmp_path / "m/a.png", classes())
    assert open_annotations(tmp_path / "m").format == "masks"
    save_png(tmp_path / "n/training/ADE_train_1.png", classes())
    assert open_annotations(tmp_path / "n").format == "ade20k"
    (tmp_path / "instances.json").write_text("{}")
    assert open_annotations(tmp_path / "instances.json").format == "coco"


def test_what_is_no_annotation_is_refused_before_any_work(tmp_path):
    (tmp_path / "a.txt").write_text("")
    for path, options, says in (
        (tmp_path / "missing", {}, "does not exist"),
        (tmp_path, {}, "neither XML nor PNG"),
        (tmp_path, {"format": "coco"}, "are a file"),
        (tmp_path / "a.txt", {"format": "masks"}, "are a folder"),
        (tmp_path, {"format": "masks", "shape": "boxes"}, "have no boxes"),
        (tmp_path, {"format": "voc"}, "did you mean .*voc-"),
    ):
        with pytest.raises(RequestError, match=says):
            open_annotations(path, **options)


@pytest.mark.parametrize("format", ["voc-boxes", "voc-masks", "ade20k", "masks"])
def test_an_annotated_image_of_another_size_is_refused_with_both(tmp_path, format):
    if format == "voc-boxes":
        save_xml(tmp_path / "a.xml", [])
    else:
        save_png(tmp_path / "a.png", classes(rim=0))
    with pytest.raises(RequestError, match=r"a\.(xml|png).*30 x 20 px there, but .* 31 x 20 px"):
        open_annotations(tmp_path, format=format).foreground("a", H, W + 1)


@pytest.mark.parametrize("format", ["voc-masks", "ade20k", "masks"])
def test_a_damaged_png_is_named_in_one_line(tmp_path, format):
    whole = save_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 9, (H, W), np.uint8))
    data = whole.read_bytes()
    for content in (data[: len(data) // 2], b"", b"text", data[:60] + b"\0" * 60 + data[120:]):
        whole.write_bytes(content)
        with pytest.raises(RequestError, match=r"a\.png is no readable PNG") as error:
            open_annotations(tmp_path, format=format).foreground("a", H, W)
        assert "\n" not in str(error.value)


def test_values_that_are_no_classes_are_refused(tmp_path):
    save_png(tmp_path / "a.png", classes(value=21))
    with pytest.raises(RequestError, match=r"a\.png holds the value 21, but classes end at 20"):
        open_annotations(tmp_path, format="voc-masks").foreground("a", H, W)
    save_png(tmp_path / "a.png", classes(value=151, rim=0))
    with pytest.raises(RequestError, match="holds the value 151, but classes end at 150"):
        open_annotations(tmp_path, format="ade20k").foreground("a", H, W)
    save_png(tmp_path / "a.png", np.zeros((H, W, 3), np.uint8))
    with pytest.raises(RequestError, match=r"a\.png is an image of mode RGB"):
        open_annotations(tmp_path, format="voc-masks").foreground("a", H, W)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no readable XML"),
        ("<annotation><size>", "no readable XML"),
        ("<annotation/>", "<annotation> has no size/height"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
            "declares a document type",
        ),
    ],
)
def test_damaged_xml_is_named_in_one_line(tmp_path, text, says):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(RequestError, match=rf"a\.xml.*{says}") as error:
        open_annotations(tmp_path).foreground("a", H, W)
    assert "\n" not in str(error.value)


VOC_XML = (
    "<annotation><filename>猫.jpg</filename><size><width>30</width><height>20</height></size>"
    "<object><name>猫</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox>"
    "</object></annotation>"
)


@pytest.mark.parametrize(
    ("declared", "codec"),
    [
        ("GBK", "gbk"),
        ("gb2312", "gb18030"),
        ("Shift_JIS", "shift_jis"),
        ("big5", "big5"),
        ("UTF-16", "utf-16"),
        ("UTF-16", "utf-16-le"),
        ("utf-8", "utf-8-sig"),
        (None, "utf-8"),
        (None, "utf-16-be"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path, declared, codec):
    name = "貓" if codec == "big5" else "猫"
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    (tmp_path / "a.xml").write_bytes((head + VOC_XML.replace("猫", name)).encode(codec))
    assert open_annotations(tmp_path).foreground("a", H, W).is_foreground.sum() == 6
    assert parse_xml(tmp_path / "a.xml").findtext("object/name") == name


def test_characters_beyond_gb2312_are_read_where_it_is_declared(tmp_path):
    text = VOC_XML.replace("猫", "镕")
    (tmp_path / "a.xml").write_bytes(
        b'<?xml version="1.0" encoding="gb2312"?>' + text.encode("gbk")
    )
    assert parse_xml(tmp_path / "a.xml").findtext("object/name") == "镕"


@pytest.mark.parametrize(
    ("declared", "data", "says"),
    [
        ("klingon", VOC_XML.encode(), "the encoding 'klingon', which is unknown"),
        ("hex", VOC_XML.encode(), "the encoding 'hex', which is unknown"),
        ("ascii", VOC_XML.encode(), "is not in ascii, as it declares"),
        ("utf-16", VOC_XML.encode()[:-1], "is not in utf-16, as it declares"),
        (None, VOC_XML.replace("猫", "狗").encode("gbk"), "is not in utf-8, and declares no other"),
    ],
)
def test_xml_in_another_encoding_than_it_says_is_named_in_one_line(tmp_path, declared, data, says):
    head = f'<?xml version="1.0" encoding="{declared}"?>'.encode() if declared else b""
    (tmp_path / "a.xml").write_bytes(head + data)
    with pytest.raises(RequestError, match=rf"a\.xml.*{says}") as error:
        open_annotations(tmp_path).foreground("a", H, W)
    assert "\n" not in str(error.value)


def test_entities_that_grow_without_end_are_refused_in_any_encoding(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "xx"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    for codec in ("utf-8", "utf-16", "gbk"):
        head = f'<?xml version="1.0" encoding="{codec}"?>'
        (tmp_path / "a.xml").write_bytes((head + bomb).encode(codec))
        with pytest.raises(RequestError, match="declares a document type"):
            parse_xml(tmp_path / "a.xml")


def test_entities_are_never_read(tmp_path):
    (tmp_path / "secret").write_text("secret")
    target = (tmp_path / "secret").as_uri()
    (tmp_path / "a.xml").write_text(f'<!DOCTYPE a [<!ENTITY b SYSTEM "{target}">]><a>&b;</a>')
    with pytest.raises(RequestError, match="declares a document type"):
        parse_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((5, 1, 3, 2), "ends before it begins"),
        (("x", 1, 3, 2), "'x', which is no"),
        (("9" * 400, 1, 3, 2), "which is no number"),
        (("nan", 1, 3, 2), "which is no number"),
        ((31, 1, 40, 2), "the box of 'car' lies outside"),
        ((-9, -9, 0, 0), "the box of 'car' lies outside"),
    ],
)
def test_a_box_that_is_none_is_refused(tmp_path, box, says):
    save_xml(tmp_path / "a.xml", [("car", box)])
    with pytest.raises(RequestError, match=says):
        open_annotations(tmp_path).foreground("a", H, W)


def test_masks_know_no_categories_and_strange_classes_no_group(tmp_path):
    save_png(tmp_path / "m/a.png", classes())
    with pytest.raises(RequestError, match="masks without categories"):
        open_annotations(tmp_path / "m").foreground("a", H, W, "unseen")
    save_xml(tmp_path / "x/a.xml", [("widget", (1, 1, 2, 2))])
    with pytest.raises(RequestError, match="not for 'widget'"):
        open_annotations(tmp_path / "x").foreground("a", H, W, "unseen")


def test_the_fingerprint_changes_with_every_byte_name_and_shape(tmp_path):
    file = save_png(tmp_path / "a.png", classes())
    seen = {open_annotations(tmp_path, format=f).fingerprint for f in ("voc-masks", "masks")}
    file.rename(tmp_path / "b.png")
    seen.add(open_annotations(tmp_path).fingerprint)
    save_png(tmp_path / "b.png", classes(rim=0))
    seen.add(open_annotations(tmp_path).fingerprint)
    assert len(seen) == 4
