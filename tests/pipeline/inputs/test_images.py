import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from skimage import data

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


def huge_png(side):
    """A PNG whose header says side x side; a few bytes long."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


JPEG = encode(Image.fromarray(CAT), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "unidentified"),
        (JPEG[:20], "unidentified"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[: -len(JPEG) // 10], "truncated"),
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
