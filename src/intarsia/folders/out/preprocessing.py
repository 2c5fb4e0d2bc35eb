"""What turns a picture file into the input of an exported model: as data, and as a script.

The script is made of the source of `prepare`, so it needs Pillow and numpy and nothing of ours.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, nn

from ...core.errors import ConfigError, DataError
from ...core.files import writing
from ...data.transforms import InputConfig, input_config
from ...train.blend import blended

KEY = "preprocessing"
SCRIPT = "predict.py"


def inputs_of(
    model: nn.Module, stated: InputConfig | None, images: Tensor | None = None
) -> InputConfig | None:
    """Return how pictures become inputs of a model: as stated, or as the model says.

    stated: the user's configuration, None = the model's own; images: (B, C, H, W): the exported
    graph will have their size, None = any. Returns None for a model that does not say.
    Raises: ConfigError if the images are of another size than `stated`.
    """
    size = None if images is None else (int(images.shape[-2]), int(images.shape[-1]))
    if stated is not None:
        if size is not None and size != tuple(stated.size):
            fix = "Prepare the images as the configuration says, or leave one of both out."
            raise ConfigError("images", got=f"{size} px", want=f"{stated.size} px", fix=fix)
        return stated
    try:
        model_inputs = input_config(model)
    except DataError:
        return None
    return model_inputs if size is None else replace(model_inputs, size=size)


def described(
    inputs: InputConfig, classes: Sequence[str] | None, several_labels: bool = False
) -> dict[str, Any]:
    """Describe as JSON how `prepare` turns pictures into inputs, and the names of the outputs.

    Returns a dictionary; its "resize" is "to" a height and width; the "shorter" side in px; or as
    large as "covers", or fits "inside", a height and width, proportions kept.
    """
    # timm: resize to size / crop, then crop the middle
    height, width = (math.floor(side / inputs.crop) for side in inputs.size)
    if inputs.crop_mode == "squash":
        resize: dict[str, Any] = {"to": [height, width]}
    elif inputs.crop_mode == "border":
        resize = {"inside": [height, width]}
    else:
        resize = {"shorter": height} if height == width else {"covers": [height, width]}
    return {
        "picture": "first frame, turned by EXIF; 16 bits / 257, transparent parts on background",
        "background": [255, 255, 255],
        "resize": resize,
        "interpolation": inputs.interpolation,
        "crop": list(inputs.size),
        "fill": [round(255 * value) for value in inputs.mean],
        "mean": list(inputs.mean),
        "std": list(inputs.std),
        "classes": None if classes is None else list(classes),
        "outputs": "logits of several labels" if several_labels else "logits",
    }


def described_blend(
    members: Sequence[InputConfig], classes: Sequence[str] | None, several_labels: bool = False
) -> dict[str, Any]:
    """Describe the same for a blend: each of its members' inputs, and the outputs once."""
    each = [described(inputs, classes, several_labels) for inputs in members]
    return {"members": each, "classes": each[0]["classes"], "outputs": each[0]["outputs"]}


def prepare(picture: Any, settings: Mapping[str, Any]) -> np.ndarray:
    """Read a picture file, and turn it into the model's input, (1, 3, height, width) float32."""
    with Image.open(picture) as file:
        # EXIF stores how the camera was held
        image = ImageOps.exif_transpose(file)
    if image.mode == "F" or image.mode.startswith("I"):
        # pictures of 16 or 32 bits, which Pillow would clip
        values = np.asarray(image).astype(np.float32)
        values = values * 255 if image.mode == "F" else values / 257
        image = Image.fromarray(np.round(values).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # transparent parts show the background
        layer = image.convert("RGBA")
        backdrop = Image.new("RGBA", layer.size, (*settings["background"], 255))
        image = Image.alpha_composite(backdrop, layer)
    image = image.convert("RGB")

    width, height = image.size
    # resize as timm does, to its rounding of the longer side
    kind, size = next(iter(settings["resize"].items()))
    if kind == "shorter":
        short, long = sorted((width, height))
        size = [size if side == short else int(size * long / short) for side in (height, width)]
    elif kind in ("covers", "inside"):
        ratio = (min if kind == "covers" else max)(height / size[0], width / size[1])
        size = [round(height / ratio), round(width / ratio)]
    if size != [height, width]:
        image = image.resize(size[::-1], Image.Resampling[settings["interpolation"].upper()])

    (width, height), (rows, columns) = image.size, settings["crop"]
    # smaller than the crop: padded with the mean colour, in the middle
    if rows > height or columns > width:
        size = max(columns, width), max(rows, height)
        canvas = Image.new("RGB", size, tuple(settings["fill"]))
        canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
        image, (width, height) = canvas, size
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    image = image.crop((left, top, left + columns, top + rows))
    pixels = np.asarray(image).astype(np.float32) / np.float32(255)
    pixels = (pixels - np.float32(settings["mean"])) / np.float32(settings["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


_HEAD = '''"""Say what pictures show: python {script} PICTURES. Needs {needs}, Pillow, numpy."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
{imports}
from PIL import Image, ImageOps

MODEL = Path(__file__).parent{model}
{load}


'''
_TAIL = """

bad = 0
for file in sys.argv[1:]:
    try:
        x = {read}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        print(f"{{file}}: no picture that can be read ({{error}})", file=sys.stderr)
        bad += 1
        continue
    logits = {run}
    if HOW["outputs"] == "logits of several labels":
        share = 1 / (1 + np.exp(-logits.astype(np.float64)))
        there = np.flatnonzero(share > 0.5)
        names = HOW["classes"] or range(len(share))
        print(file, *(f"{{names[i]}} {{share[i]:.4f}}" for i in there))
        continue
    share = np.exp(logits - logits.max())
    best = int(logits.argmax())
    name = HOW["classes"][best] if HOW["classes"] else best
    print(file, name, f"{{share[best] / share.sum():.4f}}")
if bad:
    sys.exit(f"{{bad}} of {{len(sys.argv) - 1}} files could not be read.")
"""
_FORMS = {
    "timm": (
        "import timm\nimport torch",
        'HOW = json.loads((MODEL / "config.json").read_text())["preprocessing"]\n'
        'model = timm.create_model(f"local-dir:{MODEL}", pretrained=True).eval()',
        "model(torch.from_numpy(x))[0].detach().numpy()",
    ),
    "onnxruntime": (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession(MODEL)\n"
        'HOW = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])',
        'session.run(["logits"], {"images": x})[0][0]',
    ),
    "torch": (
        "import torch",
        'extra = {"preprocessing.json": ""}\n'
        "model = torch.export.load(MODEL, extra_files=extra).module()\n"
        'HOW = json.loads(extra["preprocessing.json"])',
        "model(torch.from_numpy(x))[0].detach().numpy()",
    ),
}
_READ, _READ_EACH = "prepare(file, HOW)", '[prepare(file, how) for how in HOW["members"]]'
# the same for a blend: x has an input for each member
_BLENDS = {
    "timm": (
        "import timm\nimport torch\nimport torch.nn.functional as F\n"
        "from collections.abc import Sequence\nfrom torch import Tensor",
        'CONFIG = json.loads((MODEL / "config.json").read_text())\n'
        'HOW = CONFIG["preprocessing"]\n'
        'PLACES = [MODEL / "members" / str(i) for i in range(len(HOW["members"]))]\n'
        'models = [timm.create_model(f"local-dir:{p}", pretrained=True).eval() for p in PLACES]',
        """blended(
        [model(torch.from_numpy(pixels)).detach() for model, pixels in zip(models, x)],
        CONFIG["weights"],
        CONFIG["temperatures"],
        HOW["outputs"] == "logits of several labels",
    )[0].numpy()""",
    ),
    "onnxruntime": (
        *_FORMS["onnxruntime"][:2],
        'session.run(["logits"], {f"pixels_{i}": pixels for i, pixels in enumerate(x)})[0][0]',
    ),
    "torch": (*_FORMS["torch"][:2], "model(*map(torch.from_numpy, x))[0].detach().numpy()"),
}


def script(needs: str, path: Path, *, blend: bool = False) -> str:
    """Write the Python program that classifies pictures with an export.

    needs: package that runs it, "timm", "onnxruntime" or "torch".  blend: of several models, see
    `described_blend`.
    """
    imports, load, run = (_BLENDS if blend else _FORMS)[needs]
    name = SCRIPT if needs == "timm" else script_of(path).name
    model = "" if needs == "timm" else f" / {path.name!r}"  # quoted, whatever it is called
    docstring_name = repr(name)[1:-1].replace('"', "'")  # inside a docstring
    head = _HEAD.format(script=docstring_name, needs=needs, imports=imports, model=model, load=load)
    parts = [head, inspect.getsource(prepare)]
    if blend and needs == "timm":  # graphs have the mean of the members inside
        parts += ["\n\n", inspect.getsource(blended)]
    read = _READ_EACH if blend else _READ
    return "".join(parts) + _TAIL.format(read=read, run=run)


def script_of(path: Path) -> Path:
    """Return the path of an exported file's script: m.onnx has m.onnx.predict.py."""
    return path.with_name(f"{path.name}.{SCRIPT}")


def write_script(
    needs: str, path: Path, how: InputConfig | Mapping[str, Any] | None, *, blend: bool = False
) -> str:
    """Write the program that classifies pictures next to an export; return a sentence."""
    if how is None:
        return " The model does not say how it wants pictures: pass preprocessing= to have it kept."
    with writing(script_of(path)) as scratch:
        scratch.write_text(script(needs, path, blend=blend), "utf-8")
    return f" Without intarsia: python {script_of(path)} PICTURES"
