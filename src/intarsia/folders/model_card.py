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
from ..hosts.anatomy.blocks import base_of
from ..hosts.anatomy.origin import fingerprint
from ..hosts.attach.config import IntarsiaConfig, peft_kind

PERCENT = ("accuracy", "balanced_accuracy", "exact_match")


def model_card(model: PeftModel, record: Mapping[str, Any] | None = None) -> str:
    """Write the model card of a model's adapters, as Markdown with Hugging Face's metadata.

    record: run.json of the training; None leaves out scores and data.
    """
    record, host = record or {}, base_of(model)
    method, base = _method_names(model), _describe_base(host, record)
    data, scores = _data_and_parts(record), _scores(record)
    title = f"{method} for {base['name']}"
    meta = ModelCardData(
        base_model=base.get("hub"),
        library_name="peft",
        pipeline_tag=base["task"],
        tags=["intarsia", method, "timm" if base["timm"] else "transformers"],
        model_name=title if scores else None,
        eval_results=_evaluation_results(scores, data, base["task"]) or None,
    )
    parts = [
        f"---\n{meta.to_yaml()}\n---\n\n# {title}\n",
        _table("What it is", _fact_rows(model, record, base, data)),
        _table("Scores", scores) if scores else "",
        f"## Load it\n\n{_load(model, method, base)}",
    ]
    return "\n".join(part for part in parts if part)


def _method_names(model: PeftModel) -> str:
    """Return the names of the active adapters' methods, joined by " + "."""
    methods: list[str] = []
    for name in model.active_adapters:
        config = model.peft_config[name]
        steps = [s for s in steps_of(base_of(model)) if s.name == name]
        if isinstance(config, IntarsiaConfig):
            methods.append(config.method)
        elif steps:
            methods.append(method_key(steps[-1].plan.change))
        else:
            methods.append(peft_kind(config).lower())
    return " + ".join(dict.fromkeys(methods))


def _describe_base(host: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts on the pretrained model: name, page on the Hub, task, code that creates it."""
    settings, is_timm = (
        record.get("record", {}),
        isinstance(getattr(host, "pretrained_cfg", None), dict),
    )
    base = _of_timm(host) if is_timm else _of_transformers(host)
    base["timm"] = is_timm
    # a run that named its model by our own loader is loaded again by that loader
    if (spec := settings.get("model")) is None:
        return base
    if is_timm:
        size, classes = (
            settings.get("inputs", {}).get("size", [None])[0],
            getattr(host, "num_classes", 0),
        )
        line = f"backbone({spec!r}, classes={classes}, size={size})"
    else:
        line = f"language_model({spec!r})[0]"
    home, function = ("" if is_timm else ".language_models"), line.partition("(")[0]
    imports = f"from intarsia.data{home} import {function}"
    return base | {"name": spec, "hub": None, "import": imports, "line": line}


def _of_timm(host: Any) -> dict[str, Any]:
    """Return facts on a model of timm, from its pretrained configuration; see `_describe_base`."""
    config = host.pretrained_cfg
    name = config.get("architecture", type(host).__name__) + (
        f".{config['tag']}" if config.get("tag") else ""
    )
    # arguments that the model was built with are written out, so that the line builds it again
    defaults = {"pretrained": True, "num_classes": getattr(host, "num_classes", 0)}
    arguments = ", ".join(f"{k}={v!r}" for k, v in (defaults | dict(get_model_args(host))).items())
    return {
        "name": name,
        "hub": config.get("hf_hub_id"),
        "revision": config.get("hf_hub_revision"),
        "task": "image-classification",
        "import": "import timm",
        "line": f"timm.create_model({name!r}, {arguments})",
    }


def _of_transformers(host: Any) -> dict[str, Any]:
    """Return facts on a transformers model, from its class and the path it was loaded from."""
    kind, config = type(host).__name__, config_of(host)
    path = str(getattr(host, "name_or_path", "") or "")
    # a path on this machine says nothing to a reader of the card: only its last part is named
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
    """Return the Hub's name for the task of a class of transformers, or None."""
    if kind.endswith("ForImageClassification"):
        return "image-classification"
    if kind.endswith("LM"):
        return "text-generation" if kind.endswith("CausalLM") else "fill-mask"
    return "text-classification" if language and kind.endswith("Classification") else None


def _data_and_parts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"name", "parts"}: a run's data set and its parts, with their sizes."""
    data = record.get("record", {}).get("data", {})
    name = str(data.get("spec") or data.get("name") or "")
    parts = data.get("parts") or record.get("data", {})
    return {"name": Path(name).name or None, "parts": parts}


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of the test and validation parts: part -> {metric: value, "samples"}."""
    results = record.get("results", {})
    return {
        part: {n: results[part][n] for n in sorted(results[part], key=lambda n: n == "loss")}
        | {"samples": record["data"][part]["n"]}
        for part in ("test", "val")
        if part in results
    }


def _evaluation_results(
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
        for part, metrics in scores.items()
        for metric, value in metrics.items()
        if metric != "samples"
    ]


def _fact_rows(
    model: PeftModel, record: Mapping[str, Any], base: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, str]:
    """Return the rows of the card's first table, title -> text."""
    facts: dict[str, str] = {}
    # each adapter with its method and settings; of PEFT's own only the kind is known
    for name, config in model.peft_config.items():
        if isinstance(config, IntarsiaConfig):
            options = ", ".join(f"{k}={_short_value(v)}" for k, v in (config.options or {}).items())
            facts[f"adapter `{name}`"] = f"`{config.method}`, seed {config.seed}: {options}"
        else:
            facts[f"adapter `{name}`"] = f"PEFT's {peft_kind(config)}"
    revision = f", revision {base['revision']}" if base["revision"] else ""
    facts["base"] = f"`{base['name']}`{revision}"
    facts["base, layers"] = f"sha256 of names and shapes {fingerprint(base_of(model))['layout']}"
    # the weights' digest is in the record of an experiment, not in every folder
    if trunk := record.get("record", {}).get("trunk"):
        facts["base, weights"] = f"sha256 {trunk}"
    if data["name"] or data["parts"]:
        facts["data"] = str(data["name"] or "own")
    settings = record.get("record", {})
    if classes := settings.get("data", {}).get("classes"):
        facts["classes"] = ", ".join(map(str, classes))
    if size := settings.get("inputs", {}).get("size"):
        facts["pictures"] = f"{size[0]} x {size[1]} px"
    # digests tell whether another run had the same data
    for part, part_data in data["parts"].items():
        facts[f"data, {part}"] = f"{part_data.get('n')} samples, sha256 {part_data.get('sha256')}"
    # rows of a training run: an adapter that was saved without one has none of them
    if counts := record.get("parameters"):
        facts["parameters"] = f"{counts['trained']:,} of {counts['all']:,} trained"
    if training := record.get("training"):
        facts["training"] = ", ".join(f"{k} {_short_value(v)}" for k, v in training.items())
    # without a run the versions of today are the best guess
    libraries = record.get("versions") or {n: version(n) for n in ("intarsia", "peft", "torch")}
    return facts | {"versions": ", ".join(f"{k} {v}" for k, v in libraries.items())}


def _short_value(value: Any) -> str:
    """Format the value of a setting in one line: a method as name(settings), a list by commas."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{k}={v}" for k, v in value.items() if k != "method")
        return f"{value.get('method')}({inside})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(title: str, rows: Mapping[str, Any]) -> str:
    # scores have a column for each metric; an empty field where a part lacks one
    if all(isinstance(row, Mapping) for row in rows.values()):
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [["part", *names]] + [
            [part, *(_format_score(n, row[n]) if n in row else "" for n in names)]
            for part, row in rows.items()
        ]
    else:
        lines = [["", ""], *([name, text] for name, text in rows.items())]
    lines.insert(1, ["---"] * len(lines[0]))
    text = "\n".join("| " + " | ".join(_escape_field(c) for c in line) + " |" for line in lines)
    return f"## {title}\n\n{text}\n"


def _escape_field(text: str) -> str:
    """Escape the characters that would end a table's field."""
    return text.replace("|", "\\|").replace("\n", " ")


def _format_score(name: str, value: float) -> str:
    """Format a score: in percent, as a count, or with four digits."""
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _load(model: PeftModel, method: str, base: Mapping[str, Any]) -> str:
    """Write the Markdown that shows how to load the adapters: with this library, and with PEFT."""
    configs = model.peft_config
    # PEFT reads plain LoRA on its own; other methods need this library to be imported
    of_ours = any(isinstance(c, IntarsiaConfig) and c.method != "lora" for c in configs.values())
    inside = "FOLDER" if "default" in configs else f"FOLDER/{next(iter(configs))}"
    base_line = f"base = {base['line']}\n"
    code = {
        "With intarsia": f"import intarsia\n{base['import']}\n\n{base_line}"
        'model = intarsia.load(base, "FOLDER")',
        "With PEFT": ("import intarsia  # so that PEFT knows the type\n" if of_ours else "")
        + f"{base['import']}\nfrom peft import PeftModel\n\n{base_line}"
        f'model = PeftModel.from_pretrained(base, "{inside}")',
    }
    if _all_fold(method):
        code[
            "As a stock model, after `intarsia.load`; refused where no stock weights say the same"
        ] = "stock = intarsia.fold(model)"
    return "\n".join(f"{name}:\n\n```python\n{text}\n```\n" for name, text in code.items())


def _all_fold(method: str) -> bool:
    """Return True if every adapter can be folded into stock weights."""
    cards = [card(key) for key in method.split(" + ") if key in index()]
    return all(
        method_card.kind != "adapter" or "folds" in method_card.tags for method_card in cards
    )
