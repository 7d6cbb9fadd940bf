import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features
from skimage import data
from tiff_files import tiff_bytes

from pipeline.inputs.images import ImageError, decode_image

CAT = data.chelsea()[:60, :80]


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_forms_come_back_as_they_were(form):
    assert np.array_equal(decode_image(encode(Image.fromarray(CAT), form)), CAT)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_every_mode_becomes_rgb(mode, form):
    if (mode, form) == ("CMYK", "PNG"):
        form = "JPEG"
    decoded = decode_image(encode(Image.fromarray(CAT).convert(mode), form))
    assert decoded.shape == CAT.shape
    assert decoded.dtype == np.uint8
    if mode in ("L", "LA"):
        gray = np.asarray(Image.fromarray(CAT).convert("L"))
        assert np.array_equal(decoded, np.repeat(gray[..., None], 3, axis=2))
    if mode == "RGBA":
        assert np.array_equal(decoded, CAT)


def test_transparent_pixels_are_laid_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, :, 3] = (0, 255)
    rgba[1, 0] = (0, 0, 0, 51)
    decoded = decode_image(encode(Image.fromarray(rgba), "PNG"))
    assert decoded[..., 0].tolist() == [[255, 0], [204, 255]]


def test_16_bit_gray_is_scaled_not_clipped():
    deep = np.array([[0, 257, 1000, 30000, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(deep), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 1, 4, 117, 255]


def test_exif_orientation_is_applied_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(CAT), "JPEG", exif=exif)
    assert decode_image(content).shape == (60, 80, 3)
    assert decode_image(content, apply_exif=True).shape == (80, 60, 3)


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).shape == (8, 8, 3)
    assert (decode_image(content) == 10).all()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width, height, depth, color, rows, *chunks):
    """A PNG chunk by chunk: `rows` are the filtered bytes of its lines."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def huge_png(side):
    """A PNG whose header says side x side; a few bytes long."""
    return png_of(side, side, 8, 0, b"")


JPEG = encode(Image.fromarray(CAT), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "unidentified"),
        (JPEG[:20], "unidentified"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[: -len(JPEG) // 10], "truncated"),
        (encode(Image.fromarray(CAT), "WEBP")[:300], "truncated"),
        (encode(Image.fromarray(CAT), "TIFF", compression="tiff_lzw")[:900], "truncated"),
        (huge_png(9000), "too_large"),
        (huge_png(65000), "too_large"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "unsupported"),
        (b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.", "unidentified"),
    ],
)
def test_what_is_no_image_is_named_by_reason(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    assert caught.value.reason == reason
    assert not list(tmp_path.iterdir())


def test_extreme_shapes_decode():
    for shape in ((1, 1), (1, 5000), (5000, 1)):
        image = Image.fromarray(np.zeros((*shape, 3), np.uint8))
        assert decode_image(encode(image, "PNG")).shape == (*shape, 3)


def gray_of(content):
    """One channel of what must be gray."""
    decoded = decode_image(content)
    assert (decoded == decoded[..., :1]).all()
    return decoded[..., 0].tolist()


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(
    ("samples", "layout", "expected"),
    [
        ([0, 1, 2048, 4095], {"bits": 12}, [0, 0, 128, 255]),
        ([0, 257, 32896, 65535], {"bits": 16}, [0, 1, 128, 255]),
        ([0, 257, 32896, 65535], {"bits": 16, "photometric": 0}, [255, 254, 127, 0]),
        ([0, 16843009, 2155905152, 4294967295], {"bits": 32}, [0, 1, 128, 255]),
        ([0, 10, 250, 255], {"bits": 8, "photometric": 0}, [255, 245, 5, 0]),
        ([0, 1, 8, 15], {"bits": 4}, [0, 17, 136, 255]),
        ([0, 1, 2, 3], {"bits": 2, "photometric": 0}, [255, 170, 85, 0]),
        ([0, 1, 1, 0], {"bits": 1, "photometric": 0}, [255, 0, 0, 255]),
    ],
)
def test_gray_tiffs_of_every_depth_have_white_at_255(samples, layout, expected, deflate):
    assert gray_of(tiff_bytes([samples, samples[::-1]], deflate=deflate, **layout)) == [
        expected,
        expected[::-1],
    ]


@pytest.mark.parametrize("deflate", [False, True])
def test_16_bit_gray_of_a_big_endian_tiff_is_scaled(deflate):
    content = tiff_bytes([[0, 257, 65535]], bits=16, order=">", deflate=deflate)
    assert gray_of(content) == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("samples", "layout", "word"),
    [
        ([[-5, 5]], {"bits": 8, "sample_format": 2}, "signed"),
        ([[-5, 5]], {"bits": 16, "sample_format": 2}, "signed"),
        ([[-5, 5]], {"bits": 32, "sample_format": 2}, "signed"),
        ([[0.5, 1.0]], {"bits": 32, "sample_format": 3}, "floating-point"),
        ([[0.5, 1.0]], {"bits": 64, "sample_format": 3}, "unknown pixel mode"),
        ([[0, 9]], {"bits": 16, "photometric": 0, "order": ">"}, "unknown pixel mode"),
        ([[[5, 0, 0]]], {"photometric": 8}, "L*a*b*"),
        ([[[5, 6, 7]]], {"photometric": 6}, "subsampling"),
        ([[[5, 6, 7]]], {"photometric": 2, "bits": 16, "planar": 2}, "planes"),
        ([[[5, 6, 7]]], {"photometric": 2, "planar": 2, "fill_order": 2}, "planes"),
        ([[[5, 6]]], {"planar": 2, "extra": (2,), "deflate": True}, "planes"),
        ([[5, 6]], {"tags": {259: [34712]}}, "34712"),
    ],
)
def test_pixels_whose_meaning_is_not_read_are_refused_by_name(samples, layout, word):
    with pytest.raises(ImageError) as caught:
        decode_image(tiff_bytes(samples, **layout))
    assert caught.value.reason == "unsupported"
    assert word in str(caught.value)


@pytest.mark.parametrize("deflate", [False, True])
def test_color_tiffs_in_planes_are_as_those_without(deflate):
    planes = tiff_bytes(CAT, photometric=2, planar=2, deflate=deflate)
    assert np.array_equal(decode_image(planes), CAT)
    deep = tiff_bytes(CAT.astype(int) * 257, photometric=2, bits=16, deflate=deflate)
    assert np.array_equal(decode_image(deep), CAT)


@pytest.mark.parametrize("scale", [257, 1])
def test_a_color_map_is_of_16_bits_or_where_it_cannot_be_of_8(scale):
    colors = [value * scale for band in (0, 100, 200) for value in range(band, band + 16)]
    content = tiff_bytes([[0, 7, 15]], bits=4, photometric=3, tags={320: colors})
    assert decode_image(content)[0].tolist() == [[0, 100, 200], [7, 107, 207], [15, 115, 215]]


def test_ycbcr_without_subsampling_is_converted():
    content = tiff_bytes([[[100, 128, 128]]], photometric=6, tags={530: [1, 1]})
    assert decode_image(content)[0, 0].tolist() == [100, 100, 100]


def test_the_clear_gray_of_a_deep_png_is_white():
    rows = b"\0" + struct.pack(">4H", 0, 257 * 7, 257 * 7 + 1, 65535)
    clear = chunk(b"tRNS", struct.pack(">H", 257 * 7))
    assert gray_of(png_of(4, 1, 16, 0, rows, clear)) == [[0, 255, 7, 255]]


@pytest.mark.parametrize(
    ("depth", "packed", "expected"),
    [(1, 0b01000000, [0, 255]), (2, 0b01100000, [255, 170]), (4, 0b00010010, [255, 34])],
)
def test_the_clear_gray_of_a_shallow_png_is_white(depth, packed, expected):
    clear = chunk(b"tRNS", struct.pack(">H", 1))
    assert gray_of(png_of(2, 1, depth, 0, bytes([0, packed]), clear)) == [expected]


def test_the_clear_color_of_a_deep_png_is_told_by_all_16_bits():
    near, clear = (0x1234, 0x5678, 0x9ABD), (0x1234, 0x5678, 0x9ABC)
    rows = b"\0" + struct.pack(">6H", *clear, *near)
    content = png_of(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">3H", *clear)))
    assert decode_image(content)[0].tolist() == [[255, 255, 255], [0x12, 0x56, 0x9A]]


def test_an_inverted_cmyk_jpeg_keeps_its_colors():
    """Adobe's: no ink is 255."""
    paper = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    content = encode(paper, "JPEG")
    assert b"Adobe" in content
    assert (decode_image(content) == 255).all()


TEXT = b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)


@pytest.mark.parametrize("kind", ["zTXt", "iCCP", "damaged text"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_metadata_of_a_png_cost_no_pixels(kind, place):
    extra = chunk(kind.encode() if kind != "damaged text" else b"zTXt", TEXT)
    if kind == "damaged text":
        extra = extra[:-1] + bytes([extra[-1] ^ 1])
    whole = encode(Image.fromarray(CAT), "PNG")
    at = 33 if place == "before" else len(whole) - 12
    assert np.array_equal(decode_image(whole[:at] + extra + whole[at:]), CAT)


def changed(content, at, value):
    return content[:at] + bytes([value]) + content[at + 1 :]


BMP = encode(Image.fromarray(CAT), "BMP")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64)


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (changed(BMP, 14, 99), "unsupported", "BMP header type"),
        (changed(BMP, 28, 64), "unsupported", "BMP pixel depth"),
        (changed(JPEG, JPEG.index(b"\xff\xc0") + 4, 12), "unsupported", "12-bit"),
        (b"\xff\x0a" + bytes(64), "unsupported", "JPEG XL"),
        (HEIC, "unsupported", "HEIC"),
        (encode(Image.fromarray(CAT), "JPEG2000"), "unsupported", "JPEG 2000"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(64), "unidentified", "video"),
        (b"<!DOCTYPE html><html>", "unidentified", "web page"),
        (b"%PDF-1.7", "unidentified", "PDF"),
        (JPEG[:20], "unidentified", "begins as JPEG"),
    ],
)
def test_the_reason_says_what_it_is(content, reason, words):
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(content)
    assert caught.value.reason == reason


def test_a_png_of_broken_data_is_damaged_not_truncated():
    whole = encode(Image.fromarray(CAT), "PNG")
    middle = len(whole) // 2
    with pytest.raises(ImageError) as caught:
        decode_image(whole[:middle] + b"\0" * 400 + whole[middle + 400 :])
    assert caught.value.reason == "damaged"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_decoded_and_turned_as_its_own_header_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(CAT), "AVIF", quality=95, exif=exif)
    decoded = decode_image(content)
    assert decoded.shape == (80, 60, 3)
    assert np.abs(decoded.astype(int) - np.rot90(CAT, -1)).mean() < 4


def test_the_orientation_of_a_png_is_applied_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(CAT), "PNG", exif=exif)
    assert np.array_equal(decode_image(content), CAT)
    assert np.array_equal(decode_image(content, apply_exif=True), np.rot90(CAT, -1))
