"""The library without its laboratory, as `pip install .` alone gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SOURCE = Path(__file__).parents[1] / "src" / "intarsia"

ALONE = """
import importlib, json, sys
from importlib.util import find_spec
from pathlib import Path
from typer.testing import CliRunner
from intarsia.cli import app

def typed(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output

pictures, tiny = Path(sys.argv[1]), ("--model", "test_vit", "--untrained", "--size", "32")
quick = (*tiny, "--epochs", "1", "--batch-size", "8")
codes = {
    "fit": typed("fit", pictures, *quick, "--lr", "1e-2", "--out", "run")[0],
    "predict": typed("predict", "run", *sorted(pictures.rglob("*.png"))[:2])[0],
    "compare": typed("compare", pictures, *quick, "--methods", "linear,lora", "--lr", "1e-2",
                     "--seeds", "0", "--out", "compared")[0],
    "report": typed("report", "compared", "--out", "page.html")[0],
    "auto": typed("auto", pictures, *tiny, "--methods", "linear", "--minutes", "0.001")[0],
    "reproduce": typed("reproduce", "mosa"),
    "task": typed("fit", "mini/elpv", *quick),
    "nosuch": typed("nosuch")[0],
}
importlib.import_module("intarsia.hosts.serving.app")
codes["laboratory"] = find_spec("intarsia_lab") is not None
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: those that are installed here, but not the laboratory."""
    folder = tmp_path_factory.mktemp("site")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("intarsia_lab", "__editable__", "_editable_impl")):
            (folder / package.name).symlink_to(package)
    if not (folder / "intarsia").exists():  # an editable installation has no folder of that name
        (folder / "intarsia").symlink_to(SOURCE)
    return folder


def test_it_fits_compares_chooses_and_reports_without_the_laboratory(
    site: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(120 * label, 120 * label + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    words = [sys.executable, "-S", "-c", ALONE, str(tmp_path / "photos")]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes.pop("laboratory") is False
    refused, words_of_it = codes.pop("reproduce")
    assert refused == 2 and "pip install ./lab" in words_of_it
    assert codes.pop("task")[0] == 2 and codes.pop("nosuch") == 2
    assert codes == dict.fromkeys(("fit", "predict", "compare", "report", "auto"), 0)
