"""README.md of saved adapters: a Hugging Face model card, with how to load them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from peft import PeftModel
from timm.models import get_model_args

from ..core.change import steps_of
from ..core.foreign import config_of
from ..core.registry import card, index, method_key
from .anatomy.blocks import base_of
from .anatomy.origin import fingerprint
from .attach.config import IntarsiaConfig, peft_kind

PERCENT = ("accuracy", "balanced_accuracy", "exact_match")


def model_card(model: PeftModel, record: Mapping[str, Any] | None = None) -> str:
    """The card of a model's adapters.  record: of the training, as in run.json, None = unknown."""
    record, host = record or {}, base_of(model)
    method, base = _method(model), _base(host, record)
    data, scores = _data(record), _scores(record)
    title = f"{method} for {base['name']}"
    meta = ModelCardData(
        base_model=base.get("hub"),
        library_name="peft",
        pipeline_tag=base["task"],
        tags=["intarsia", method, "timm" if base["timm"] else "transformers"],
        model_name=title if scores else None,
        eval_results=_evaluated(scores, data, base["task"]) or None,
    )
    parts = [
        f"---\n{meta.to_yaml()}\n---\n\n# {title}\n",
        _table("What it is", _facts(model, record, base, data)),
        _table("Scores", scores) if scores else "",
        f"## Load it\n\n{_load(model, method, base)}",
    ]
    return "\n".join(part for part in parts if part)


def _method(model: PeftModel) -> str:
    found: list[str] = []
    for name in model.active_adapters:
        config = model.peft_config[name]
        steps = [s for s in steps_of(base_of(model)) if s.name == name]
        if isinstance(config, IntarsiaConfig):
            found.append(config.method)
        elif steps:
            found.append(method_key(steps[-1].plan.change))
        else:
            found.append(peft_kind(config).lower())
    return " + ".join(dict.fromkeys(found))


def _base(host: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the pretrained model is from, and the lines that make it again."""
    about, timms = record.get("record", {}), isinstance(getattr(host, "pretrained_cfg", None), dict)
    found = _of_timm(host) if timms else _of_transformers(host)
    found["timm"] = timms
    if (told := about.get("model")) is None:
        return found
    if timms:
        size, classes = (
            about.get("inputs", {}).get("size", [None])[0],
            getattr(host, "num_classes", 0),
        )
        line = f"backbone({told!r}, classes={classes}, size={size})"
    else:
        line = f"language_model({told!r})[0]"
    home, function = ("" if timms else ".language_models"), line.partition("(")[0]
    imports = f"from intarsia.data{home} import {function}"
    return found | {"name": told, "hub": None, "import": imports, "line": line}


def _of_timm(host: Any) -> dict[str, Any]:
    own = host.pretrained_cfg
    name = own.get("architecture", type(host).__name__) + (
        f".{own['tag']}" if own.get("tag") else ""
    )
    given = {"pretrained": True, "num_classes": getattr(host, "num_classes", 0)}
    arguments = ", ".join(f"{k}={v!r}" for k, v in (given | dict(get_model_args(host))).items())
    return {
        "name": name,
        "hub": own.get("hf_hub_id"),
        "revision": own.get("hf_hub_revision"),
        "task": "image-classification",
        "import": "import timm",
        "line": f"timm.create_model({name!r}, {arguments})",
    }


def _of_transformers(host: Any) -> dict[str, Any]:
    kind, config = type(host).__name__, config_of(host)
    path = str(getattr(host, "name_or_path", "") or "")
    local = path != "" and (Path(path).exists() or path.count("/") > 1)
    name = Path(path).name if local else path or kind
    return {
        "name": name,
        "hub": path if path.count("/") == 1 and not local else None,
        "revision": getattr(config, "_commit_hash", None),
        "task": _task(kind, hasattr(config, "vocab_size")),
        "import": "import transformers",
        "line": f"transformers.{kind}.from_pretrained({name!r})",
    }


def _task(kind: str, language: bool) -> str | None:
    """The Hub's name for what a class of transformers does."""
    if kind.endswith("ForImageClassification"):
        return "image-classification"
    if kind.endswith("LM"):
        return "text-generation" if kind.endswith("CausalLM") else "fill-mask"
    return "text-classification" if language and kind.endswith("Classification") else None


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    found = record.get("record", {}).get("data", {})
    name = str(found.get("spec") or found.get("name") or "")
    parts = found.get("parts") or record.get("data", {})
    return {"name": Path(name).name or None, "parts": parts}


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part -> its scores, with the number of samples."""
    results = record.get("results", {})
    return {
        part: {n: results[part][n] for n in sorted(results[part], key=lambda n: n == "loss")}
        | {"samples": record["data"][part]["n"]}
        for part in ("test", "val")
        if part in results
    }


def _evaluated(
    scores: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any], task: str | None
) -> list[EvalResult]:
    name = data["name"] or "own data"
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=name,
            dataset_name=name,
            dataset_split=part,
            metric_type=metric,
            metric_value=value,
        )
        for part, found in scores.items()
        for metric, value in found.items()
        if metric != "samples"
    ]


def _facts(
    model: PeftModel, record: Mapping[str, Any], base: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, str]:
    """What the card's first table says."""
    facts: dict[str, str] = {}
    for name, config in model.peft_config.items():
        if isinstance(config, IntarsiaConfig):
            told = ", ".join(f"{k}={_short(v)}" for k, v in (config.options or {}).items())
            facts[f"adapter `{name}`"] = f"`{config.method}`, seed {config.seed}: {told}"
        else:
            facts[f"adapter `{name}`"] = f"PEFT's {peft_kind(config)}"
    revision = f", revision {base['revision']}" if base["revision"] else ""
    facts["base"] = f"`{base['name']}`{revision}"
    facts["base, layers"] = f"sha256 of names and shapes {fingerprint(base_of(model))['layout']}"
    if trunk := record.get("record", {}).get("trunk"):
        facts["base, weights"] = f"sha256 {trunk}"
    if data["name"] or data["parts"]:
        facts["data"] = str(data["name"] or "own")
    about = record.get("record", {})
    if classes := about.get("data", {}).get("classes"):
        facts["classes"] = ", ".join(map(str, classes))
    if size := about.get("inputs", {}).get("size"):
        facts["pictures"] = f"{size[0]} x {size[1]} px"
    for part, found in data["parts"].items():
        facts[f"data, {part}"] = f"{found.get('n')} samples, sha256 {found.get('sha256')}"
    if counts := record.get("parameters"):
        facts["parameters"] = f"{counts['trained']:,} of {counts['all']:,} trained"
    if training := record.get("training"):
        facts["training"] = ", ".join(f"{k} {_short(v)}" for k, v in training.items())
    libraries = record.get("versions") or {n: version(n) for n in ("intarsia", "peft", "torch")}
    return facts | {"versions": ", ".join(f"{k} {v}" for k, v in libraries.items())}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{k}={v}" for k, v in value.items() if k != "method")
        return f"{value.get('method')}({inside})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(title: str, rows: Mapping[str, Any]) -> str:
    """A table of two columns, or of one for each score."""
    if all(isinstance(row, Mapping) for row in rows.values()):
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [["part", *names]] + [
            [part, *(_number(n, row[n]) if n in row else "" for n in names)]
            for part, row in rows.items()
        ]
    else:
        lines = [["", ""], *([name, text] for name, text in rows.items())]
    lines.insert(1, ["---"] * len(lines[0]))
    text = "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)
    return f"## {title}\n\n{text}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(name: str, value: float) -> str:
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _load(model: PeftModel, method: str, base: Mapping[str, Any]) -> str:
    """How to load it with this library, with PEFT, and as a stock model."""
    configs = model.peft_config
    own = any(isinstance(c, IntarsiaConfig) and c.method != "lora" for c in configs.values())
    inside = "FOLDER" if "default" in configs else f"FOLDER/{next(iter(configs))}"
    base_line = f"base = {base['line']}\n"
    code = {
        "With intarsia": f"import intarsia\n{base['import']}\n\n{base_line}"
        'model = intarsia.load(base, "FOLDER")',
        "With PEFT": ("import intarsia  # so that PEFT knows the type\n" if own else "")
        + f"{base['import']}\nfrom peft import PeftModel\n\n{base_line}"
        f'model = PeftModel.from_pretrained(base, "{inside}")',
    }
    if _folds(method):
        code[
            "As a stock model, after `intarsia.load`; refused where no stock weights say the same"
        ] = "stock = intarsia.fold(model)"
    return "\n".join(f"{name}:\n\n```python\n{text}\n```\n" for name, text in code.items())


def _folds(method: str) -> bool:
    """Whether every adapter folds, by the cards; those of PEFT's own merge."""
    known = [card(key) for key in method.split(" + ") if key in index()]
    return all(found.kind != "adapter" or "folds" in found.tags for found in known)
