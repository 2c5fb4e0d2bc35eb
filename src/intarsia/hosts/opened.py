"""Open a language model that was changed and saved with its configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import TargetError
from ..core.files import read_json, repaired, writing
from ..core.sealing import seal_folder
from ..data.language_models import language_model
from ..data.packages import announce
from .anatomy.blocks import base_of
from .saved import load, save

SETTINGS, CONFIG = "intarsia.json", "config.json"


def save_language_model(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """`save`, with the model's configuration and tokenizer, so that the folder opens by itself.

    record: file name -> what it holds as JSON.
    Raises: TargetError for a model of another library; as `save`.
    """
    host: Any = base_of(model)
    if not callable(getattr(getattr(host, "config", None), "save_pretrained", None)):
        want, fix = "a model of transformers", "Use intarsia.save."
        raise TargetError("model", got=type(host).__name__, want=want, fix=fix)
    with writing(folder, spare=True) as scratch:
        save(model, scratch)
        content = read_json(scratch / SETTINGS)
        host.config.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        for name, value in (record or {}).items():
            (scratch / name).write_text(json.dumps(value, indent=1) + "\n")
        seal_folder(scratch, SETTINGS, content)
    return Path(folder)


def open_language_model(
    name: str, *, dtype: str = "float32", progress: Callable[[str], None] = announce
) -> tuple[nn.Module, Any]:
    """A language model and its tokenizer: by name, a stock folder, or one that `compress` wrote.

    dtype: of a stock model, see `language_model`; a compressed one keeps that of its file.
    Raises: as `language_model` and `load`.
    """
    folder = repaired(name)
    if not ((folder / SETTINGS).is_file() and (folder / CONFIG).is_file()):
        return language_model(name, dtype=dtype, progress=progress)
    model, tokenizer = language_model(name, pretrained=False, progress=progress)
    if (own := getattr(model.config, "dtype", None)) is not None:
        model = model.to(own)  # pyright: ignore[reportCallIssue]
    return load(model, folder).eval(), tokenizer
