"""Readers of the named sets: unpacked folder of a package -> images, labels, class names."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from intarsia.data.decode import MAX_PIXELS, read_image, to_rgb
from intarsia.data.decoded import Decoded

DIGITS = [str(digit) for digit in range(10)]
VAGUE = frozenset(  # folders of clip art that do not name a subject
    {"buttons", "computer", "logos", "shapes", "signs_and_symbols", "special", "unsorted"}
)


def fashion_mnist(folder: Path) -> Decoded:
    """Read 70,000 shop pictures, 28 px grey; the first 60,000 are the publisher's training part."""
    root = folder / "usr/share/datasets/fashion-mnist"
    images, labels = [], []
    for part in ("train", "t10k"):  # idx format: 16 and 8 bytes of header
        pixels = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())
        images.append(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28))
        ids = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        labels += list(ids[8:])
    classes = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]
    classes += ["Bag", "Boot"]
    return np.concatenate(images), labels, classes


def mnist(folder: Path) -> Decoded:
    """Read handwritten digits, 28 px grey, from JSON files that hold values / 255."""
    images, labels = [], []
    for digit, name in enumerate(DIGITS):
        text = (folder / f"package/src/digits/{name}.json").read_text(encoding="utf-8")
        shades = np.asarray(json.loads(text)["data"], dtype=np.float64).reshape(-1, 28, 28)
        images.append((shades * 255).round().astype(np.uint8))
        labels += [digit] * len(shades)
    return np.concatenate(images), labels, DIGITS


def elpv(folder: Path) -> Decoded:
    """Read 300 px grey photographs of solar cells, labelled by level of defect."""
    # the probability is 0, 1/3, 2/3 or 1
    images, defect, _ = _elpv_rows(folder)
    levels = ["sound", "1/3 defective", "2/3 defective", "defective"]
    return images, [round(p * 3) for p in defect], levels


def elpv_type(folder: Path) -> Decoded:
    """Read 300 px grey photographs of solar cells, labelled by the cell's crystal type."""
    images, _, kind = _elpv_rows(folder)
    classes = ["mono", "poly"]
    return images, [classes.index(k) for k in kind], classes


def _elpv_rows(folder: Path) -> tuple[np.ndarray, list[float], list[str]]:
    """Read photographs of solar cells (300 px), their probability of a defect, and crystal type."""
    root = folder / "elpv_dataset/data"
    with (root / "labels.csv").open(newline="") as file:
        rows = [r for r in csv.reader(file, delimiter=" ", skipinitialspace=True) if r]
    images = np.stack([np.asarray(read_image(root / row[0]).convert("L")) for row in rows])
    return images, [float(row[1]) for row in rows], [row[2] for row in rows]


def tuxpaint(folder: Path, size: int = 224, fewest: int = 12) -> Decoded:
    """Read Tux Paint's stamps, each on a white square of `size` px, with their topic as class.

    fewest: topics with fewer pictures are left out. Returns images, labels and class names.
    """
    root = folder / "usr/share/tuxpaint/stamps"
    files = sorted(root.rglob("*.png"))
    # The top folder is the topic.
    topic = [file.relative_to(root).parts[0] for file in files]
    classes = sorted(name for name in set(topic) if topic.count(name) >= fewest)
    labelled = [(f, t) for f, t in zip(files, topic, strict=True) if t in classes]
    square = (size, size)
    squares = [
        np.asarray(ImageOps.pad(read_image(f), square, Image.Resampling.LANCZOS, "white"))
        for f, _ in labelled
    ]
    return np.stack(squares), [classes.index(t) for _, t in labelled], classes


def openclipart(folder: Path, size: int = 224) -> Decoded:
    """Read clip art, each drawing on a white square of `size` px, with its topic as class.

    Topics in VAGUE and drawings over 89 Mpx are left out. Returns images, labels and class names.
    """
    root = folder / "usr/share/openclipart/png"
    images, topics = [], []
    for file in sorted(root.rglob("*.png")):
        topic = file.relative_to(root).parts[0]
        if topic not in VAGUE and (image := _shrink_drawing(file, size)) is not None:
            images.append(image)
            topics.append(topic)
    classes = sorted(set(topics))
    return np.stack(images), [classes.index(t) for t in topics], classes


def _shrink_drawing(file: Path, size: int) -> np.ndarray | None:
    """Return a PNG as (size, size, 3) uint8, shrunk and laid on white; None if over 89 Mpx."""
    width, height = _read_png_size(file)  # Pillow warns when it opens a large picture
    if width * height > MAX_PIXELS:
        return None
    square, resampling = (size, size), Image.Resampling.LANCZOS
    with Image.open(file, formats=["PNG"]) as image:
        layer = image.convert("RGBA")
    layer = layer.reduce(max(1, max(layer.size) // (3 * size)))  # a box filter first: 6x faster
    fit = to_rgb(ImageOps.contain(layer, square, resampling))
    return np.asarray(ImageOps.pad(fit, square, resampling, "white"))


def _read_png_size(file: Path) -> tuple[int, int]:
    with file.open("rb") as data:
        head = data.read(24)
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def emoji(folder: Path, vendor: str = "google", fewest: int = 12) -> Decoded:
    """Read emoji, 32 px on white, with their category as class.

    vendor: "google" or "twitter". fewest: categories with fewer pictures are left out.
    """
    root = folder / "package"
    rows = json.loads((root / "emoji.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row[f"has_img_{vendor}"]]
    topic = [row["category"] for row in rows]
    classes = sorted(name for name in set(topic) if topic.count(name) >= fewest)
    rows = [row for row in rows if row["category"] in classes]
    with Image.open(root / f"img/{vendor}/sheets/32.png", formats=["PNG"]) as image:
        sheet = image.convert("RGBA")
    images = []
    for row in rows:  # every picture has a margin of 1 px on the sheet
        left_edge, top_edge = row["sheet_x"] * 34 + 1, row["sheet_y"] * 34 + 1
        images.append(
            np.asarray(to_rgb(sheet.crop((left_edge, top_edge, left_edge + 32, top_edge + 32))))
        )
    return np.stack(images), [classes.index(row["category"]) for row in rows], classes


def landsat(folder: Path) -> Decoded:
    """Read satellite patches of 3x3 px in false colour: near infrared, red and green light as RGB.

    Band values (27 to 157 of 255) stay as published. The first infrared band is dropped.
    """
    file = folder / "usr/lib/R/site-library/mlbench/data/Satellite.rda"
    raw = lzma.decompress(file.read_bytes())
    # XDR data frame: 36 float64 columns, then classes from 1 on; each begins with type and length
    start = raw.index(b"Satellite") + len(b"Satellite") + 8
    count = int.from_bytes(raw[start + 4 : start + 8])
    column = np.dtype([("head", ">i4", 2), ("value", ">f8", count)])
    bands = np.frombuffer(raw, column, 36, start)["value"]
    # The class column follows the 36 bands, each with a head of 8 bytes.
    labels = np.frombuffer(raw, ">i4", count, start + 36 * column.itemsize + 8) - 1
    patches = bands.T.reshape(count, 3, 3, 4)[..., [3, 1, 0]].astype(np.uint8)
    classes = ["red soil", "cotton crop", "grey soil", "damp grey soil", "vegetation stubble"]
    classes += ["very damp grey soil"]
    return np.ascontiguousarray(patches), labels.tolist(), classes


def textile(folder: Path) -> Decoded:
    """Read simulated woven textures, 250 px: sound, locally or globally defective."""
    root = folder / "conformal_clip_data/data/textile_images/simulated"
    classes = ["nominal", "local", "global"]
    files = [(file, c) for c in classes for file in sorted((root / c).glob("*.jpg"))]
    images = np.stack([np.asarray(read_image(file)) for file, _ in files])
    return images, [classes.index(c) for _, c in files], classes
