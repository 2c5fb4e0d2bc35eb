"""The script of an export makes of a picture, by itself, exactly what the library makes of it."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.data.decode import read_image
from intarsia.data.transforms import InputConfig, eval_transform, input_config
from intarsia.folders.out.export import export_timm
from intarsia.folders.out.graphs import export_onnx, export_program
from intarsia.folders.out.preprocessing import described, prepare, script

CLASSES = ["a", "b", "c"]
MODES = ("RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "I", "F")


def picture(mode: str, width: int, height: int, seed: int = 0) -> bytes:
    """An encoded picture, with transparency where the mode has some."""
    draw = np.random.default_rng(seed)
    if mode in ("I;16", "I"):
        deep = draw.integers(0, 65536, (height, width)).astype(np.uint16)
        image, kind = Image.fromarray(deep), "png" if mode == "I;16" else "tiff"
        image = image.convert("I") if mode == "I" else image
    elif mode == "F":
        image, kind = Image.fromarray(draw.random((height, width)).astype(np.float32)), "tiff"
    else:
        noise = draw.integers(0, 256, (height, width, 4)).astype(np.uint8)
        image, kind = Image.fromarray(noise), "tiff" if mode == "CMYK" else "png"
        image = image if mode == "RGBA" else image.convert("RGB") if mode == "P" else image
        image = image.convert(mode)
    file, options = io.BytesIO(), {"transparency": 3} if mode == "P" else {}
    if mode == "RGB":
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        options = {"exif": exif}
    image.save(file, kind, **options)
    return file.getvalue()


configs = st.builds(
    InputConfig,
    size=st.tuples(st.integers(4, 24), st.integers(4, 24)) | st.sampled_from([(8, 8), (17, 17)]),
    mean=st.just((0.485, 0.456, 0.406)),
    std=st.just((0.229, 0.224, 0.225)),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    crop=st.sampled_from([1.0, 0.875, 0.9]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)


@given(configs, st.sampled_from(MODES), st.integers(6, 40), st.integers(6, 40))
def test_a_file_becomes_the_same_input(
    inputs: InputConfig, mode: str, width: int, height: int
) -> None:
    encoded = picture(mode, width, height)
    want = eval_transform(inputs)(read_image(encoded))[None]
    record = json.loads(json.dumps(described(inputs, None)))
    assert torch.equal(torch.from_numpy(prepare(io.BytesIO(encoded), record)), want)


@pytest.mark.parametrize("needs", ["timm", "onnxruntime", "torch"])
def test_the_script_needs_nothing_of_ours(needs: str) -> None:
    code = script(needs, Path("m.onnx"))
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom)]
    text = " ".join(map(ast.unparse, nodes))
    assert "intarsia" not in text and needs in text


@pytest.mark.parametrize("name", ['my "best" net.onnx', "a\\new.onnx", '"""; int("a"); """.onnx'])
def test_a_script_names_its_model_whatever_it_is_called(name: str) -> None:
    tree = ast.parse(script("onnxruntime", Path(name)))
    place = next(n.value for n in tree.body if isinstance(n, ast.Assign))
    assert isinstance(place, ast.BinOp)
    assert ast.literal_eval(place.right) == name
    assert sum(isinstance(n, ast.Expr) for n in tree.body) == 1  # the docstring


def scripts(folder: Path, model: Any, **options: Any) -> list[Path]:
    """Exports of a model in all three forms, and their scripts."""
    export_timm(model, folder / "stock", **options)
    export_onnx(model, folder / "m.onnx", **options)
    export_program(model, folder / "p.pt2", **options)
    return [folder / f"{place}predict.py" for place in ("stock/", "m.onnx.", "p.pt2.")]


ALL = """
import runpy, sys
sys.modules.update(dict.fromkeys(("intarsia", "peft", "transformers")))
scripts, files = sys.argv[1:4], sys.argv[4:]
for script in scripts:
    sys.argv = [script, *files]
    runpy.run_path(script)
"""


@pytest.mark.thorough
def test_every_export_says_in_a_process_of_its_own_what_the_model_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 48, "depth": 1, "embed_dim": 24, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes).eval()
    inputs = InputConfig((48, 48), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", 0.8)
    files = [tmp_path / f"{i}.picture" for i in range(len(MODES))]
    for seed, (file, mode) in enumerate(zip(files, MODES, strict=True)):
        file.write_bytes(picture(mode, 50, 45, seed))
    x = torch.stack([eval_transform(inputs)(read_image(file)) for file in files])
    with torch.no_grad():  # answers that differ
        head: Any = model.get_submodule("head")
        head.weight.mul_(100)
        head.bias.sub_(model(x).mean(0))
        probabilities = model(x).softmax(1).max(1)
    options: dict[str, Any] = {
        "classes": CLASSES,
        "preprocessing": inputs,
        "report": lambda _: None,
    }
    paths = scripts(tmp_path, model, **options)
    run = subprocess.run(
        [sys.executable, "-c", ALL, *map(str, paths), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [s[0] for s in rows] == 3 * [str(file) for file in files]
    assert [s[1] for s in rows] == 3 * [CLASSES[i] for i in probabilities.indices]
    assert [float(s[2]) for s in rows] == pytest.approx(3 * probabilities.values.tolist(), abs=2e-3)
    assert len(set(probabilities.indices.tolist())) > 1
    again = timm.create_model(f"local-dir:{tmp_path / 'stock'}", pretrained=True)
    assert input_config(again) == inputs  # timm's own transform of an RGB picture is the same
    stored = json.loads((tmp_path / "stock" / "config.json").read_text())["preprocessing"]
    meta = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(meta["preprocessing"]) == stored == described(inputs, CLASSES)


STANDS_IN = """
import json
import numpy as np

HOW = {
    "resize": {"to": [4, 4]}, "crop": [4, 4], "interpolation": "bicubic", "outputs": "logits",
    "background": [255] * 3, "fill": [0] * 3, "mean": [0] * 3, "std": [1] * 3,
    "classes": ["a", "b"],
}


class InferenceSession:
    custom_metadata_map = {"preprocessing": json.dumps(HOW)}

    def __init__(self, _):
        self.get_modelmeta = lambda: self

    def run(self, *_):
        return [[np.array([2.0, 0.0])]]
"""


def test_the_program_goes_on_after_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(STANDS_IN)
    program = tmp_path / "m.onnx.predict.py"
    program.write_text(script("onnxruntime", tmp_path / "m.onnx"))
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (9, 7)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:45])

    def run(*names: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(program), *names]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("text.png", "none.png", "cut.png", "good.png")
    assert done.returncode == 1 and done.stdout == "good.png a 0.8808\n"
    for name in ("text.png", "none.png", "cut.png", "3 of 4 files"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr and run("good.png").returncode == 0
