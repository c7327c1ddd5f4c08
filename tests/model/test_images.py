import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mobilenets.errors import UserError
from mobilenets.model import images
from mobilenets.model.images import BadImage, Preprocess, open_rgb

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(img, kind, **options):
    out = io.BytesIO()
    img.save(out, kind, **options)
    return out.getvalue()


def photo(width=60, height=40):
    """A smooth coloured image, RGB."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9 + y / 7)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def close(img, expected, tolerance):
    assert img.mode == "RGB"
    assert img.size == expected.size
    difference = np.abs(np.asarray(img).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() <= tolerance, difference.mean()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95}, 3),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
    ],
)
def test_usual_kinds(kind, options, tolerance):
    close(open_rgb(encoded(photo(), kind, **options)), photo(), tolerance)


def test_a_path_works_as_bytes_do(tmp_path):
    photo().save(tmp_path / "a.png")
    close(open_rgb(tmp_path / "a.png"), photo(), 0)


def test_16_bit_png():
    wide = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    img = open_rgb(encoded(Image.fromarray(wide), "PNG"))
    assert img.mode == "RGB"
    assert np.array_equal(np.asarray(img), np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, 2))


@pytest.mark.parametrize(
    ("most", "dtype", "kind"),
    [
        (255, np.uint16, "PNG"), (4095, np.uint16, "PNG"), (4095, np.uint16, "TIFF"), (65535, np.uint16, "TIFF"),
        (2**24 - 1, np.int32, "TIFF"), (2**31 - 1, np.int32, "TIFF"), (1, np.float32, "TIFF"),
        (255, np.float32, "TIFF"), (4095, np.float32, "TIFF"), (65535, np.float32, "TIFF"),
    ],
)  # fmt: skip
def test_a_picture_is_as_bright_whatever_its_depth(most, dtype, kind):
    y, x = np.mgrid[0:80, 0:96]
    grey = (x / 95 * 0.7 + y / 79 * 0.3) * 255
    deep = grey / 255 * most
    img = open_rgb(encoded(Image.fromarray((deep if dtype is np.float32 else deep.round()).astype(dtype)), kind))
    assert np.abs(np.asarray(img)[..., 0] - grey).max() <= 1.01


def test_float_tiff():
    img = open_rgb(encoded(Image.fromarray(np.array([[0.0, 100.0], [300.0, np.nan]], np.float32)), "TIFF"))
    assert np.asarray(img)[..., 0].tolist() == [[0, 100], [255, 0]]
    img = open_rgb(encoded(Image.fromarray(np.array([[0.0, 0.5], [1.02, -0.1]], np.float32)), "TIFF"))
    assert np.asarray(img)[..., 0].tolist() == [[0, 128], [255, 0]]
    img = open_rgb(encoded(Image.fromarray(np.array([[np.inf, np.nan]], np.float32)), "TIFF"))
    assert np.asarray(img).max() == 0


def test_cmyk_jpeg():
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    close(open_rgb(data), photo(), 4)


def test_palette_png():
    img = photo().quantize(32)
    close(open_rgb(encoded(img, "PNG")), img.convert("RGB"), 0)


def test_palette_png_with_transparency_is_over_white():
    img = Image.new("P", (8, 8), 0)
    img.putpalette([*RED, *BLUE])
    img.paste(1, (4, 0, 8, 8))
    pixels = np.asarray(open_rgb(encoded(img, "PNG", transparency=0)))
    assert tuple(pixels[0, 0]) == WHITE
    assert tuple(pixels[0, 7]) == BLUE


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), WHITE),
        ("RGBA", (*RED, 127), (255, 128, 128)),
        ("LA", (10, 255), (10, 10, 10)),
        ("LA", (10, 0), WHITE),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
    ],
)
def test_grey_and_transparent_png(mode, colour, seen):
    pixels = np.asarray(open_rgb(encoded(Image.new(mode, (5, 3), colour), "PNG")))
    assert pixels.shape == (3, 5, 3)
    assert (pixels == seen).all()


def test_the_first_frame_of_a_gif():
    frames = [Image.new("RGB", (6, 6), c) for c in (RED, BLUE)]
    img = open_rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    close(img, frames[0], 0)


@pytest.mark.parametrize("short_side", [0, 8])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (-1, 0)), (3, (-1, -1)), (6, (-1, 0)), (8, (0, -1))]
)
def test_exif_orientation(orientation, corner, short_side):
    """A red corner, top left in the file, is seen where the tag puts it (as (x, y))."""
    img = Image.new("RGB", (64, 32), BLUE)
    img.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = open_rgb(encoded(img, "JPEG", exif=exif, quality=95), short_side=short_side)
    assert (seen.width > seen.height) == (orientation < 5)
    x, y = corner
    assert np.asarray(seen)[y, x, 0] > 200
    assert np.asarray(seen)[-1 - y, -1 - x, 0] < 50


def test_malformed_exif_does_no_harm():
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"):
        assert open_rgb(encoded(photo(), "JPEG", exif=exif)).size == (60, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_truncated(kind, fraction):
    data = encoded(photo(200, 160), kind)
    with pytest.raises(BadImage, match=r"cut\.img"):
        open_rgb(data[: int(len(data) * fraction)], "cut.img")


def test_a_truncated_jpeg_is_bad_when_scaled_too():
    data = encoded(photo(800, 600), "JPEG")
    with pytest.raises(BadImage, match="damaged image"):
        open_rgb(data[: len(data) // 2], "cut.jpg", short_side=64)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "not an image"), (b"some text\n" * 20, "not an image"), (b"\xff\xd8\xff", "not an image")],
)
def test_no_image_at_all(data, message, tmp_path):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(BadImage, match=rf"a\.jpg: .*{message}"):
        open_rgb(tmp_path / "a.jpg")


def test_missing_file(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.png: no such file"):
        open_rgb(tmp_path / "gone.png")


def test_corrupted_bytes_give_an_image_or_a_bad_image():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        good = np.frombuffer(encoded(photo(), kind), np.uint8)
        outcomes = []
        for _ in range(20):
            data = good.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            try:
                outcomes.append(open_rgb(data.tobytes()).mode)
            except BadImage:
                outcomes.append("bad")
        assert set(outcomes) <= {"RGB", "bad"}


def huge_png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("pillows_own_limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_decompression_bomb_is_not_decoded(monkeypatch, pillows_own_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_own_limit)
    with pytest.raises(BadImage, match=r"bomb\.png: .*(limit|bomb)"):
        open_rgb(huge_png(60_000, 60_000), "bomb.png")


def test_a_jpeg_over_the_limit_is_decoded_at_a_fraction(monkeypatch):
    data = encoded(photo(800, 600), "JPEG")
    monkeypatch.setattr(images, "MAX_PIXELS", 400 * 300)
    assert open_rgb(data, short_side=32).size == (100, 75)
    with pytest.raises(BadImage, match=r"^image: 800x600 pixels, over the limit of 120,000$"):  # not called damaged
        open_rgb(data, short_side=200)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 800 * 600 - 1)
    with pytest.raises(BadImage, match="over the limit"):
        open_rgb(data, short_side=32)


def test_the_pixel_limit_is_exact(monkeypatch):
    data = encoded(photo(60, 40), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40)
    assert open_rgb(data).size == (60, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40 - 1)
    with pytest.raises(BadImage, match="60x40 pixels, over the limit"):
        open_rgb(data)


@pytest.mark.parametrize(
    ("short_side", "size"), [(0, (800, 600)), (64, (200, 150)), (150, (400, 300)), (151, (800, 600))]
)
def test_a_jpeg_is_decoded_scaled_but_never_under_twice_what_is_needed(short_side, size):
    assert open_rgb(encoded(photo(800, 600), "JPEG"), short_side=short_side).size == size


def test_scaled_decoding_changes_little():
    data, p = encoded(photo(800, 600), "JPEG", quality=90), Preprocess(56)
    scaled, full = p.read(data), p.fit(open_rgb(data))
    difference = np.abs(scaled.astype(int) - full.astype(int))
    assert 0 < difference.mean() < 1
    assert difference.max() < 16


def test_fit_takes_the_centre_square():
    img = Image.new("RGB", (100, 40), BLUE)
    img.paste(RED, (30, 0, 70, 40))
    pixels = Preprocess(32, crop=1.0).fit(img)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:, 1:-1] == RED).all()  # antialiasing reaches a pixel beyond the box
    assert (pixels[:, [0, -1], 0] > 200).all()


def test_fit_crops_a_share_of_the_short_side():
    img = Image.new("RGB", (80, 80), BLUE)
    img.paste(RED, (20, 20, 60, 60))
    assert (Preprocess(32, crop=0.5).fit(img)[1:-1, 1:-1] == RED).all()
    assert (Preprocess(32, crop=0.625).fit(img)[[0, 0, -1, -1], [0, -1, 0, -1]] == BLUE).all()


def test_fit_leaves_an_image_of_the_right_size_alone():
    assert np.array_equal(Preprocess(40, crop=1.0).fit(photo(40, 40)), np.asarray(photo(40, 40)))


def test_normalize():
    p = Preprocess(32, mean=(0.0, 10.0, 20.0), std=(1.0, 2.0, 4.0))
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[1, 5, 7] = (30, 30, 30)
    x = p.normalize(pixels)
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == np.float32
    assert x[0, :, 0, 0].tolist() == [0, -5, -5]
    assert x[1, :, 5, 7].tolist() == [30, 10, 2.5]


def test_preprocess_survives_json():
    p = Preprocess(96, 0.9, (1.0, 2.0, 3.0), (4.0, 5.0, 6.5))
    assert Preprocess.from_json(json.loads(json.dumps(p.to_json()))) == p


@pytest.mark.parametrize(
    "edit",
    [
        {"resolution": 7},
        {"crop": 0},
        {"crop": 1.5},
        {"std": [1, 1, 0]},
        {"mean": [1, 2]},
        {"crop": "all"},
        {"mean": None},
    ],
)
def test_a_malformed_preprocess_is_refused(edit):
    with pytest.raises(UserError):
        Preprocess.from_json({**Preprocess(96).to_json(), **edit})


def test_large_images_of_every_mode_are_made_smaller_strip_by_strip(monkeypatch):
    """To what the whole image gives at once, and the same at its own size."""
    wide = np.arange(600 * 400, dtype=np.uint16).reshape(400, 600)
    palette = photo(600, 400).quantize(16)
    for data in (
        encoded(photo(600, 400), "PNG"),
        encoded(Image.merge("RGBA", [*photo(600, 400).split(), photo(600, 400).getchannel(0)]), "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(Image.fromarray(wide), "PNG"),
        encoded(Image.fromarray(np.linspace(-9, 300, 240_000, dtype=np.float32).reshape(400, 600)), "TIFF"),
    ):
        whole = open_rgb(data, short_side=60)
        monkeypatch.setattr(images, "LARGE", 600 * 40)
        small = open_rgb(data, short_side=60)
        assert small.size == (300, 200)
        assert small.info[images.FULL_SIZE] == (600, 400)
        close(small, whole.reduce(2), 0)
        close(open_rgb(data), whole, 0)
        monkeypatch.undo()


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_a_small_file_that_fills_the_memory_is_refused(kind, monkeypatch):
    """The formats whose decoders take several times the image's own size."""
    data = encoded(Image.new("RGB", (200, 100)), kind)
    assert open_rgb(data).size == (200, 100)
    monkeypatch.setattr(images, "BYTES", 200 * 100 * 8)
    with pytest.raises(BadImage, match=r"^a\.img: \d+ bytes that decode to "):
        open_rgb(data, "a.img")
    noise = encoded(Image.effect_noise((200, 100), 90).convert("RGB"), kind)
    assert open_rgb(noise).size == (200, 100)  # a file of its size may


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    data = encoded(photo(), "JPEG", progressive=True)
    assert open_rgb(data).size == (60, 40)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="scans, over the limit"):
        open_rgb(data[:at] + data[at:-2] * 200 + data[-2:])


def test_a_16_bit_image_takes_little_more_than_its_pixels():
    """In a process of its own: what it took is what the process took at most."""
    code = (
        "import io, resource, numpy as np; from PIL import Image; from mobilenets.model.images import open_rgb\n"
        "out = io.BytesIO(); Image.new('I;16', (6000, 5000)).save(out, 'PNG', compress_level=1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "open_rgb(out.getvalue(), short_side=64)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    pytest.importorskip("resource")
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 150_000 * (1024 if sys.platform == "darwin" else 1)  # KB; 60 MB of pixels
