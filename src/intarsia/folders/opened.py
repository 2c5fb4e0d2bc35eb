"""Open a language model that was changed and saved with its configuration and tokenizer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..core.errors import TargetError
from ..core.files import read_json, repaired, writing
from ..core.sealing import check_files, check_settings, seal_folder
from ..data.language_models import language_model
from ..data.packages import announce
from ..hosts.anatomy.blocks import base_of
from ..sparse.prune.files import SPARSE, convert_sparse, tokenizer_of
from .saved import damaged, load, save

SETTINGS, CONFIG = "intarsia.json", "config.json"


def save_language_model(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Save a changed model with configuration and tokenizer, so that its folder opens on its own.

    tokenizer: None = the one of the folder or repository that the model was loaded from, if this
    machine has it; record: file name -> its contents, written as JSON.
    Raises: TargetError for a model of another library; as `save`.
    """
    host: Any = base_of(model)
    if not isinstance(host, PreTrainedModel):
        want, fix = "a model of transformers", "Use intarsia.save."
        raise TargetError("model", got=type(host).__name__, want=want, fix=fix)
    with writing(folder, refuse_loss=True) as scratch:
        save(model, scratch)
        content = read_json(scratch / SETTINGS)
        host.config.save_pretrained(scratch)
        tokenizer_to_save = tokenizer or tokenizer_of(host)
        if tokenizer_to_save is not None:
            tokenizer_to_save.save_pretrained(scratch)
        for name, value in (record or {}).items():
            (scratch / name).write_text(json.dumps(value, indent=1) + "\n")
        # `save` sealed its own files; the seal is renewed, since there are more of them now
        seal_folder(scratch, SETTINGS, content)
    return Path(folder)


def is_changed(folder: Path) -> bool:
    """Return True if a folder holds a changed model with its configuration."""
    return (folder / SETTINGS).is_file() and (folder / CONFIG).is_file()


def open_language_model(
    name: str, *, dtype: str = "float32", progress: Callable[[str], None] = announce
) -> tuple[nn.Module, Any]:
    """Open a language model and its tokenizer, by name or from a folder.

    name: smollm2, a stock folder (`sparsify` writes one), a folder of `sparsify --layout bitmask`,
      or of `save_language_model`, as `compress` writes it.
    dtype: of a stock model, see `language_model`; a changed model has its file's dtype.
    progress: is given a line of text, as for a download.
    Raises: as `language_model` and `load`.
    """
    folder = repaired(name)
    # a packed sparse folder is decoded into a stock one, which is deleted after it was read
    if (folder / SPARSE).is_file() and (folder / CONFIG).is_file():
        with tempfile.TemporaryDirectory() as place:
            dense = convert_sparse(folder, Path(place) / folder.resolve().name)
            return language_model(str(dense), dtype=dtype, progress=progress)
    if not is_changed(folder):
        return language_model(name, dtype=dtype, progress=progress)
    drawn = _stored_weights(folder) != "all"
    # every weight comes from the folder, so none is downloaded or drawn for it
    model, tokenizer = language_model(name, pretrained=False, drawn=drawn, progress=progress)
    if (dtype_of_file := getattr(model.config, "dtype", None)) is not None:
        model = model.to(dtype_of_file)  # pyright: ignore[reportCallIssue]
    return load(model, folder).eval(), tokenizer


def _stored_weights(folder: Path) -> str:
    """Return which weights of a changed model its folder has, see `save`."""
    try:
        content = read_json(folder / SETTINGS)
    except (OSError, ValueError) as error:
        raise damaged(folder / SETTINGS, f"text that is not JSON ({error})") from error
    content, files = check_settings(folder / SETTINGS, content)
    # all files but the weights are checked by their digests, before a model is built
    small = {name: digest for name, digest in files.items() if not name.endswith(".safetensors")}
    check_files(folder, small, needs=(CONFIG,))
    return str(content.get("weights"))
