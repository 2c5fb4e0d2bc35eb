"""Every kind of picture becomes correct RGB, or an error that names the file and a fix."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.core.errors import ConfigError, DataError
from intarsia.data import decode
from intarsia.data.decode import MAX_PIXELS, digest, read_image, room, to_rgb

from ..refusals import refused


def _pixel(path: Path, at: tuple[int, int] = (0, 0)) -> object:
    image = read_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    data = b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", 0)
        + data
        + struct.pack(">I", zlib.crc32(data))
    )


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = np.asarray(read_image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_16_bit_tiff_is_scaled_too(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 51400, dtype=np.uint16)).save(tmp_path / "deep.tif")
    assert _pixel(tmp_path / "deep.tif") == (200, 200, 200)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.tif")
    red, green, blue = np.asarray(read_image(tmp_path / "ink.tif"))[0, 0]
    assert (red, green, blue) == (255, 0, 0)


def test_palette_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=0)
    assert _pixel(tmp_path / "p.png") == (255, 255, 255)
    assert _pixel(tmp_path / "p.png", (1, 0)) == (200, 100, 50)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_white_stays_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (4, 4), "white").convert(mode).save(tmp_path / "w.png")
    assert _pixel(tmp_path / "w.png") == (255, 255, 255)


def test_half_transparent_black_on_white_is_grey() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime")]
    path = tmp_path / f"film.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as film:
        assert getattr(film, "n_frames", 1) == 2
    assert _pixel(path) == (255, 0, 0)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (6, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 6)


def _damaged() -> dict[str, bytes]:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        whole, "PNG"
    )
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(jpeg, "JPEG")
    return {
        "empty.png": b"",
        "text.jpg": b"this is not a picture",
        "truncated.png": whole.getvalue()[:5000],
        "truncated.jpg": jpeg.getvalue()[:-200],
        "head.png": whole.getvalue()[:20],
        "huge.png": _png_header(20_000, 20_000),
        "large.png": _png_header(12_000, 8_000),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", sorted(_damaged()))
def test_unreadable_files_are_named_in_the_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_damaged()[name])
    with pytest.raises(DataError, match=name) as caught:
        read_image(tmp_path / name)
    assert caught.value.fix and caught.value.want


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", ["huge.png", "large.png"])
def test_a_decompression_bomb_is_refused_before_decoding(name: str) -> None:
    with refused(DataError, what="encoded image") as caught:
        read_image(_damaged()[name])
    assert str(MAX_PIXELS) in str(caught.value)


def test_20_000_px_wide_but_small_is_read(tmp_path: Path) -> None:
    Image.new("L", (20_000, 3), 7).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png").size == (20_000, 3)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with refused(DataError, got="an empty or missing file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 4, 3), np.uint8),
        np.zeros((3, 4, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.full((2, 2), -1, np.int16),
        np.full((2, 2), 70_000, np.int32),
        np.full((2, 2), 1.5, np.float32),
        np.full((2, 2), np.nan, np.float32),
    ],
    ids=["4-d", "2 channels", "empty", "negative", "too large", "float > 1", "nan"],
)
def test_ambiguous_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError):
        to_rgb(array)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((2, 2), True), 255),
        (np.full((2, 2), 0.5, np.float64), 128),
        (np.full((2, 2, 1), 9, np.uint8), 9),
        (np.full((2, 2), 65535, np.int32), 255),
    ],
    ids=["bool", "float", "one channel", "int32"],
)
def test_unambiguous_arrays_are_scaled(array: np.ndarray, value: int) -> None:
    assert to_rgb(array).getpixel((1, 1)) == (value,) * 3


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_digest_depends_on_size_and_pixels(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    same = digest(Image.fromarray(pixels))
    assert same == digest(Image.fromarray(pixels.copy())) != digest(Image.fromarray(other))
    blank = np.zeros((height, width, 3), np.uint8)
    turned = np.zeros((width, height, 3), np.uint8)  # same bytes, another shape
    equal = digest(Image.fromarray(blank)) == digest(Image.fromarray(turned))
    assert equal == (width == height)


def test_a_postscript_file_named_png_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    head = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "page.png").write_text(head)
    with Image.open(tmp_path / "page.png") as image:
        assert image.format == "EPS", "Pillow on its own would take it"
    with pytest.raises(DataError, match=r"page\.png.*cannot identify"):
        read_image(tmp_path / "page.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="where a (regular )?file belongs"):
            read_image(path)


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png"], ids=["long", "zero byte"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="too long|null byte") as caught:
        read_image(Path(name))
    assert len(str(caught.value)) < 700


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 400 * 640 * 3).reshape(400, 640, 3).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    sizes = {side: read_image(tmp_path / "a.jpg", side=side).size for side in (40, 90, 150, 300)}
    assert sizes == {40: (80, 50), 90: (160, 100), 150: (320, 200), 300: (640, 400)}
    assert read_image(tmp_path / "a.png", side=40).size == (640, 400)
    small, whole = (
        np.asarray(read_image(tmp_path / "a.jpg", side=side).resize((20, 12)), dtype=float)
        for side in (60, None)
    )
    assert abs(small - whole).max() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_are_the_whole_picture(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    layer = image.convert("RGBA")
    want = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    for rows in (1, 17 * 4, 10_000):
        monkeypatch.setattr(decode, "STRIP", rows)
        assert to_rgb(image).tobytes() == want.tobytes()
        monkeypatch.setattr(decode, "STRIP", 10_000)
        whole = digest(want)
        monkeypatch.setattr(decode, "STRIP", rows)
        assert digest(want) == whole


def test_large_pictures_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "AT_ONCE", 100)
    Image.new("L", (10, 8)).save(tmp_path / "large.png")
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    entered = threading.Event()

    def enter() -> None:
        with room(tmp_path / "large.png"):
            entered.set()

    with contextlib.ExitStack() as inside:
        inside.enter_context(room(tmp_path / "large.png"))
        inside.enter_context(room(tmp_path / "small.png"))  # 96 of 100: there is room
        waits = threading.Thread(target=enter)
        waits.start()
        assert not entered.wait(0.05)
    waits.join(10)
    assert entered.is_set()
    monkeypatch.setattr(decode, "AT_ONCE", 1)
    with room(tmp_path / "large.png"):  # one alone is never kept out
        pass


def test_the_limit_of_pixels_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (10, 8)).save(tmp_path / "a.png")
    monkeypatch.setenv("INTARSIA_MAX_PIXELS", "79")
    with refused(DataError, got="Image size (10x8)"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("INTARSIA_MAX_PIXELS", "80")
    assert read_image(tmp_path / "a.png").size == (10, 8)
    monkeypatch.setenv("INTARSIA_MAX_PIXELS", "many")
    with refused(ConfigError, what="INTARSIA_MAX_PIXELS", got="'many'"):
        read_image(tmp_path / "a.png")


def test_a_picture_above_pillows_limit_is_read_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 80 pixels are more than twice as many
    monkeypatch.setattr(decode, "MAX_PIXELS", 20)
    Image.new("L", (10, 8)).save(tmp_path / "a.png")
    with refused(DataError, got="Image size (80 pixels)"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("INTARSIA_MAX_PIXELS", "100")
    assert read_image(tmp_path / "a.png").size == (10, 8)


def test_a_picture_larger_than_the_free_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        available = 100

    Image.new("L", (10, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode.psutil, "virtual_memory", Little)
    assert read_image(tmp_path / "a.png").size == (10, 8), "a small one is always tried"
    monkeypatch.setattr(decode, "STRIP", 10)
    with refused(DataError, got="10x8 px, 0.0 GB while it is decoded"):
        read_image(tmp_path / "a.png")
