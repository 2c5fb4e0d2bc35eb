"""Write a language model, or its LoRA alone, for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.files import read_json
from ..core.folders import BLEND, describe_folder
from ..data.language_models import language_model
from ..folders.opened import open_language_model
from ..folders.out.gguf_adapter import export_gguf_adapter
from ..folders.out.gguf_model import export_gguf
from ..folders.out.graphs import needs, target_of
from ..folders.saved import load
from ..hosts.anatomy.origin import damaged
from ..hosts.folding.fold import fold_whole
from . import experiment as experiments
from .opening import open_single
from .release import Report
from .writing import TextRun

ADAPTER, WRITER = "adapter_config.json", "intarsia.save or PEFT's save_pretrained"


def release_text(
    source: str, target: Path, *, quant: str | None, fold_it: bool, report: Report, result: Report
) -> Path:
    """Write a language model as a GGUF file, with its adapters folded in, or its LoRA alone.

    source: a run of `intarsia fit` on texts, "smollm2", a folder of `save_pretrained` or of
    `intarsia compress`, or the folder of an adapter that names its model. quant: the number format,
    None = "bf16", of an adapter "f32". fold_it: False writes the LoRA alone.
    Raises: as `export_gguf` and `export_gguf_adapter`; ConfigError for a run on pictures;
    CheckpointError for a damaged adapter.
    """
    target_of(target, ".gguf")  # refused before a model is opened
    needs("gguf")
    model, tokenizer = _opened(source, report)
    if not fold_it:
        return export_gguf_adapter(model, target, quant=quant or "f32", report=result)
    # any tokens will do: the folded model is compared with the adapted one on them
    tokens: Any = torch.arange(32)[None] % len(tokenizer)
    # GGUF has no place for adapters inside a model: their changes go into its weights
    stock = fold_whole(model, inputs={"input_ids": tokens}, report=result)
    return export_gguf(stock, target, tokenizer=tokenizer, quant=quant or "bf16", report=result)


def _opened(source: str, report: Report) -> tuple[nn.Module, Any]:
    """Return the language model of a source, as it was trained or packed, and its tokenizer."""
    folder = Path(source)
    if (folder / BLEND).is_file():
        want, fix = "a run on texts", "Use --format timm or onnx for a blend."
        raise ConfigError("--format gguf", got=describe_folder(folder), want=want, fix=fix)
    if (folder / experiments.FILE).is_file():
        run = open_single(folder, as_trained=False, report=report)
        if not isinstance(run, TextRun):
            want, fix = "a run on texts", "Use --format onnx --int8 for a fast net on pictures."
            raise ConfigError("--format gguf", got="a run on pictures", want=want, fix=fix)
        return run.model, run.tokenizer
    # an adapter's folder has no model of its own; its file names the one it belongs to
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        try:
            content = read_json(folder / ADAPTER)
            base = content["base_model_name_or_path"]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder / ADAPTER, f"{type(error).__name__}: {error}", WRITER) from error
        if not isinstance(base, str) or not base:
            want, fix = "base_model_name_or_path, a folder or a name", "Write it into that file."
            raise ConfigError(str(folder / ADAPTER), got=repr(base), want=want, fix=fix)
        report(f"The adapter's model is {base}.")
        model, tokenizer = language_model(base, progress=report)
        return load(model, folder), tokenizer
    return open_language_model(source, dtype="auto", progress=report)
