"""`intarsia offload`: the experts of a model as records on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from .shell import note, say
from .targets import target


def offload(
    model: Annotated[Path, typer.Argument(help="A folder of save_pretrained with experts.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Write a sparse model's experts as records that `intarsia.offload` reads one by one.

    Needs the memory of one expert beside the other weights, however many experts there are.

    Example:  intarsia offload my-mixtral my-mixtral-experts
    """
    if not model.is_dir():
        fix = "Give the folder that holds config.json and *.safetensors."
        raise ConfigError(f"folder {str(model)!r}", got="nothing there", want="a folder", fix=fix)
    target(out, "my-mixtral-experts", option="OUT")
    from ..hosts.offload.store import ExpertStore, pack_experts
    from ..reports.numbers import prefixed

    store = ExpertStore(pack_experts(model, out, progress=note))
    count = sum(len(layer["sha256"]) for layer in store.layers)
    size = store.bytes
    store.close()
    say(f"{count} experts of {prefixed(size, 'B')} each\n{out}")
    say(f"Next:  intarsia.offload({str(out)!r}, slots={max(2, count // 4)})")
