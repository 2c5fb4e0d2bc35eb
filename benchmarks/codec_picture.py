"""docs/pictures/recombiner.svg out of the claim's record, and photographs that were decoded.

python benchmarks/codec_picture.py curves     # of docs/results/recombiner.json
python benchmarks/codec_picture.py decoded    # minutes: a held-out photograph, built-in prior
"""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from intarsia.areas.codec.codec import Recombiner
from intarsia.data.photographs import photographs
from intarsia_lab.experiments.recombiner import file, psnr

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 620, 28, 350  # of the plot
RATES, QUALITY = (0.0, 3.0), (18.0, 40.0)  # of the axes: bits per pixel, dB
COLOURS = {
    "RECOMBINER": "#c2410c",
    "COMBINER": "#0e7490",
    "COIN": "#7c3aed",
    "JPEG": "#808080",
    "WEBP": "#808080",
    "AVIF": "#808080",
}
DASHES = {"JPEG": "2 3", "WEBP": "7 4", "AVIF": "12 4 2 4"}
HEIGHT_SHOWN, WIDTH_SHOWN, STEPS = 96, 128, 200


def place(rate: float, quality: float) -> tuple[float, float]:
    x = LEFT + (rate - RATES[0]) / (RATES[1] - RATES[0]) * (RIGHT - LEFT)
    return x, BOTTOM - (quality - QUALITY[0]) / (QUALITY[1] - QUALITY[0]) * (BOTTOM - TOP)


def curves(rows: list[dict[str, str]]) -> str:
    """PSNR against bits per pixel of the payload, a line for each codec."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        found[row["codec"]].append((float(row["bits per pixel"]), float(row["PSNR"].split()[0])))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="PSNR against bits per pixel" font-family="sans-serif" font-size="13" '
        f'fill="#808080">'
    ]
    for quality in range(20, 41, 5):
        x, y = place(0, quality)
        lines.append(f'<path d="M{x} {y:.0f}H{RIGHT}" stroke="#80808055"/>')
        lines.append(f'<text x="{x - 8}" y="{y + 4:.0f}" text-anchor="end">{quality}</text>')
    for rate in (0, 0.5, 1, 1.5, 2, 2.5, 3):
        x, _ = place(rate, 0)
        lines.append(f'<text x="{x:.0f}" y="{BOTTOM + 18}" text-anchor="middle">{rate:g}</text>')
    middle = (LEFT + RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{BOTTOM + 38}" text-anchor="middle">bits per pixel of the payload'
        "; JPEG, WebP and AVIF less their headers</text>"
    )
    lines.append(f'<text x="{LEFT + 6}" y="{TOP - 6}">PSNR, dB</text>')
    for number, (codec, points) in enumerate(found.items()):
        shown = [place(*point) for point in sorted(points) if point[0] <= RATES[1]]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)
        colour, dash = COLOURS[codec], DASHES.get(codec, "none")
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        lines.append(f'<path d="{path}" fill="none" {style}/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in shown]
        y = BOTTOM - 20 * (len(found) - number) + 6
        lines.append(f'<path d="M{RIGHT - 130} {y - 4}h30" {style}/>')
        lines.append(f'<text x="{RIGHT - 92}" y="{y}" fill="{colour}">{codec}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def nearest(pixels: np.ndarray, form: str, size: int) -> str:
    """Bytes and PSNR of the quality with the file nearest to a size."""
    files = [file(pixels, form, quality) for quality in range(1, 96, 2)]
    data = min(files, key=lambda one: abs(len(one) - size))
    found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return f"{form} {len(data)} bytes {psnr(pixels, found):.2f} dB"


def decoded() -> Image.Image:
    """Return a photograph next to what the built-in prior keeps of it, and print the figures.

    It is scikit-learn's `china.jpg` by danielbuechele, CC BY 2.0, which the prior was not trained
    on: of the photographs that are held out the one with a licence that lets it stand in a page.
    """
    codec = Recombiner.load()
    china = photographs((), shrink=4)[0].pixels
    crop = np.ascontiguousarray(china[:HEIGHT_SHOWN, :WIDTH_SHOWN])
    data = codec.encode(crop, steps=STEPS)
    picture = codec.decode(data)
    beside = [nearest(crop, form, len(data)) for form in ("JPEG", "WEBP", "AVIF")]
    print(f"{len(data)} bytes, {psnr(crop, picture):.2f} dB; {', '.join(beside)}")
    whole = Image.fromarray(np.concatenate([crop, picture], axis=1))
    return whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST)


if __name__ == "__main__":
    if sys.argv[1] == "curves":
        record = json.loads((DOCS / "results" / "recombiner.json").read_text())
        (DOCS / "pictures" / "recombiner.svg").write_text(curves(record["table"]))
    else:
        decoded().save(DOCS / "pictures" / "recombiner.png", optimize=True)
