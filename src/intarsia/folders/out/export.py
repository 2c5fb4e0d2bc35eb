"""A stock timm model as a folder that timm itself builds and loads, with none of our code.

timm.create_model("local-dir:FOLDER", pretrained=True)
timm.create_model(ARCH, checkpoint_path="FOLDER/model.safetensors", **model_args of config.json)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_args, save_for_hf
from torch import nn

from ...core.errors import ConfigError, ExportError
from ...core.files import read_json, writing
from ...core.sealing import STOCK, seal_stock
from ...data.transforms import InputConfig
from ...hosts.anatomy.blocks import wrapped_paths
from ...hosts.anatomy.compare import Inputs, difference, inputs_for, outputs
from ...hosts.attach.peft import is_adapted
from ...hosts.folding.widen import mlps, pad
from .preprocessing import SCRIPT, described, inputs_of, script

Report = Callable[[str], None]
FILES = frozenset({"config.json", "model.safetensors", SCRIPT, STOCK})
ELSEWHERE = "Use export_onnx or export_program, which keep any shape."


def export_timm(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    inputs: Inputs | None = None,
    preprocessing: InputConfig | None = None,
    several_labels: bool = False,
    report: Report = print,
) -> Path:
    """Write a folded timm model to a folder that timm builds and loads, and check that it does.

    The folder has model.safetensors, config.json and predict.py. The config holds the architecture,
    the arguments that build it (with the `mlp_ratio` of widened MLPs), the class names, timm's own
    settings of the pictures, and under "preprocessing" all that turns a file into an input,
    transparent and 16-bit pictures included; predict.py does that with Pillow, numpy and timm. MLPs
    of unlike widths are padded with zero units, in a copy, where one ratio has to build them all.
    timm rebuilds the model from the files; its weights must be equal bit by bit, its outputs on
    `inputs` (None = seeded noise) up to rounding. An earlier export at `path` is replaced, anything
    else is not.

    classes: names of the outputs; None = those that came with the folded adapter.
    preprocessing: of the pictures in training; None = the model's own.
    several_labels: outputs are logits of labels that may apply together, for predict.py.
    report: function that is given a line of text.
    Raises: ExportError if no arguments of timm build the model (a widened ConvNeXt: its constructor
    knows no MLP ratio), or it comes back different; ConfigError for a model that is adapted, is not
    timm's, or for a path in use.
    """
    target = Path(path)
    _check(model, target, classes)
    source, arguments, padded = _buildable(model)
    pictures_config, names = inputs_of(model, preprocessing), classes or _label_names(model)
    with writing(target) as folder:
        folder.mkdir()
        config: dict[str, Any] = {"label_names": list(classes)} if classes else {}
        pictures = None if pictures_config is None else _for_timm(pictures_config)
        if pictures_config is not None:
            config["preprocessing"] = described(pictures_config, names, several_labels)
            (folder / SCRIPT).write_text(script("timm", target), "utf-8")
        save_for_hf(
            source, str(folder), config, arguments, safe_serialization=True, data_config=pictures
        )
        # timm builds the model from the files alone, before they get their name
        deviation = _check_reload(source, folder, model, inputs)
        seal_stock(folder)
    ratio = arguments.get("mlp_ratio")
    widened = "" if ratio is None else f" mlp_ratio={ratio}, {padded} zero units added;"
    report(f"export_timm: {target};{widened} rebuilt by timm, output difference {deviation}.")
    if pictures_config is not None:
        report(f"Without intarsia: python {target / SCRIPT} PICTURES")
    return target


def _label_names(model: nn.Module) -> list[str] | None:
    return getattr(model, "pretrained_cfg", {}).get("label_names")


def _for_timm(inputs: InputConfig) -> dict[str, Any]:
    """Convert an input configuration to the names that timm uses for the same settings."""
    return {
        "input_size": (3, *inputs.size),
        "mean": inputs.mean,
        "std": inputs.std,
        "interpolation": inputs.interpolation,
        "crop_pct": inputs.crop,
        "crop_mode": inputs.crop_mode,
    }


def _check(model: nn.Module, target: Path, classes: Sequence[str] | None) -> None:
    """Check that a model can be exported, the number of class names, and the target folder."""
    if is_adapted(model) or wrapped_paths(model):
        got, want = "a model with adapters in it", "a stock timm model"
        raise ConfigError("export_timm", got=got, want=want, fix="Pass intarsia.fold(model).")
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or not config.get("architecture"):
        got = f"{type(model).__name__} without a timm architecture"
        fix = "A transformers model writes itself: model.save_pretrained(folder)."
        raise ConfigError("export_timm", got=got, want="a model made by timm.create_model", fix=fix)
    count = getattr(model, "num_classes", None)
    if classes is not None and (len(classes) != count or len(set(classes)) != count):
        got = f"{len(classes)} names, {len(set(classes))} distinct"
        fix = "Give them in the order of the outputs."
        raise ConfigError("classes", got=got, want=f"{count}, one for each output", fix=fix)
    # an export replaces its folder: nothing else may be in it
    strangers = sorted(p.name for p in target.iterdir()) if target.is_dir() else []
    if (target.exists() and not target.is_dir()) or (strangers and not _is_export(target)):
        got = f"{target} with {strangers or 'a file'} in it"
        want = "a new folder, an empty one, or an earlier export"
        raise ConfigError("path of the export", got=got, want=want, fix="Choose another path.")


def _is_export(folder: Path) -> bool:
    """Return True if a folder holds files that `export_timm` wrote, and nothing else."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    names = {p.name for p in folder.iterdir()}
    return names <= FILES and isinstance(config, dict) and "architecture" in config


def whole_width(ratio: float, inputs: int) -> int:
    """Return the hidden width that timm derives from a ratio."""
    return int(inputs * ratio)


def ratio_for(hidden: int, inputs: int) -> float:
    """Return an `mlp_ratio` from which timm computes a given number of hidden units.

    int(inputs * ratio) == hidden.
    """
    quotient = hidden / inputs
    # half a unit more, so that rounding of the product cannot cross an integer
    return quotient if whole_width(quotient, inputs) == hidden else (hidden + 0.5) / inputs


def _mlp_ratios(model: nn.Module) -> list[dict[str, Any]]:
    """List arguments of timm's constructor that may build these MLPs, to be tried in order."""
    widths = list(dict.fromkeys((m.inputs, m.hidden) for m in mlps(model).values()))
    stages = [ratio_for(hidden, inputs) for inputs, hidden in widths]
    candidates: list[dict[str, Any]] = [{}]
    # a ratio stands for MLPs of one input width, which must then have one hidden width
    one_hidden_each = len(widths) == len({inputs for inputs, _ in widths})
    if stages and one_hidden_each:
        ratio = stages[0]
        if all(whole_width(ratio, i) == h for i, h in widths):
            candidates.append({"mlp_ratio": ratio})
        # Swin and the like take a ratio for each stage, which have unlike input widths
        candidates.append({"mlp_ratio": stages})
    return candidates


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _buildable(model: nn.Module) -> tuple[nn.Module, dict[str, Any], int]:
    """Return the model, or a padded copy, with arguments from which timm builds its shapes."""
    tried: dict[str, str] = {}
    # first as it is; MLPs of unlike widths get zero units only if that does not work
    for padded in (False, True):
        source, units = model, 0
        if padded:
            source = copy.deepcopy(model)
            if not (units := pad(source)):
                break
        for arguments in _mlp_ratios(source):
            wrong = _why_not_built(source, arguments)
            if wrong is None:
                return source, arguments, units
            tried[str(arguments or "its own arguments")] = wrong
    got = "; ".join(f"with {key}: {reason}" for key, reason in tried.items())
    want = "arguments from which timm.create_model builds these shapes"
    raise ExportError(f"export_timm of {_architecture(model)}", got=got, want=want, fix=ELSEWHERE)


def _architecture(model: nn.Module) -> str:
    """Return timm's name of a model's architecture."""
    return str(vars(model)["pretrained_cfg"]["architecture"])


def _why_not_built(model: nn.Module, arguments: dict[str, Any]) -> str | None:
    """Return the reason why timm does not build the model's shapes; None if it does."""
    settings = get_model_args(model, dict(arguments))
    try:
        # shapes only: nothing is allocated or drawn
        with torch.device("meta"):
            built = timm.create_model(_architecture(model), **settings)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''})"
    got, want = _shapes(built), _shapes(model)
    wrong = [name for name in want.keys() | got.keys() if want.get(name) != got.get(name)]
    if not wrong:
        return None
    first = min(wrong)
    return f"{first} is {got.get(first, 'missing')} for {want.get(first, 'nothing')}"


def _check_reload(source: nn.Module, folder: Path, model: nn.Module, inputs: Inputs | None) -> Any:
    """Build the model from the files alone, and compare weights and outputs."""
    like = next(p for p in source.parameters() if p.is_floating_point())
    try:
        rebuilt = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        subject, got = "export_timm", f"{type(error).__name__}: {error}"
        raise ExportError(subject, got=got, want="files that timm loads", fix=ELSEWHERE) from error
    rebuilt = rebuilt.to(like.device, like.dtype).eval()
    want = source.state_dict()
    # files keep every bit, so equal means equal
    wrong = [k for k, t in rebuilt.state_dict().items() if not torch.equal(t, want[k])]
    if wrong:
        subject, got = "export_timm", f"other weights after loading: {wrong[:3]}"
        raise ExportError(subject, got=got, want="the model's own, bit by bit", fix=ELSEWHERE)
    # the model that was passed, not the padded copy, is what has to come back
    batch = inputs_for(model, inputs)
    deviation = difference(outputs(rebuilt, batch), outputs(model, batch))
    deviation.check("export_timm", 1e-4, ExportError, ELSEWHERE)
    return deviation
