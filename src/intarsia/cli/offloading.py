"""`intarsia offload`: the experts of a model as records on disk."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError
from .options import Json, OutFolder, SparseModel
from .shell import note, say, show_json
from .targets import target


def offload(
    model: SparseModel,
    out: OutFolder = None,
    as_json: Json = False,
) -> None:
    """Write a mixture's experts to a folder, from which a model then reads those that it needs.

    Needs the memory of one expert and the other weights, however many experts there are.

    Example:  intarsia offload my-mixtral --out my-mixtral-experts
    """
    folder = Path(model)
    if not folder.is_dir():
        fix = "Give the folder that holds config.json and *.safetensors."
        raise ConfigError(f"folder {model!r}", got="nothing there", want="a folder", fix=fix)
    if out is None or not out.exists():
        target(out, "my-mixtral-experts")
    # Torch is imported only once the names are known to be right.
    from ..offloading.store import ExpertStore, pack_experts, store_names
    from ..reports.numbers import prefixed

    out = target(out, "my-mixtral-experts", written_names=store_names(out) if out else ())
    store = ExpertStore(pack_experts(folder, out, progress=note))
    count = sum(len(layer["sha256"]) for layer in store.layers)
    size = store.bytes
    store.close()
    if as_json:
        show_json({"folder": str(out), "experts": count, "bytes of an expert": size})
        return
    say(f"{count} experts of {prefixed(size, 'B')} each\n{out}")
    # A quarter of the experts fits most machines, and two are the fewest that a layer can use.
    say(f"Next:  intarsia.offload({str(out)!r}, slots={max(2, count // 4)})")
