"""Folders of sparse models: stock ones with exact zeros, or with a bitmask; and old ones read.

dense            what the model's own library writes; zeros are zeros
bitmask          sparse.safetensors: <name>.compressed, .bitmask, .shape, .row_offsets for each
                 weight that gets smaller, see `formats.Bitmask`; were it called model.safetensors,
                 transformers would open it with random weights for names it does not know
pack-quantized   compressed-tensors' int4, see `packed`: smaller, opened by `from_pretrained`
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.checks import one_of
from ...core.errors import CheckpointError, ShapeError, TargetError
from ...core.files import check_target, read_json, repaired, writing
from ...core.reading import copy_file, open_tensors, read_tensors
from ...core.sealing import STOCK, check_if_sealed, check_same_result, seal_stock, sealed_names
from ...formats import Bitmask
from ...hosts.anatomy.blocks import base_of
from ...hosts.anatomy.origin import damaged
from ...hosts.attach.peft import is_adapted
from .packed import packed

LAYOUTS = ("dense", "bitmask")
PACKED = "pack-quantized"  # needs the model itself, since its layers have to be known
SPARSE, DENSE, CONFIG, INDEX = (
    "sparse.safetensors",
    "model.safetensors",
    "config.json",
    "model.safetensors.index.json",
)
PARTS = ("compressed", "bitmask", "shape", "row_offsets")
TEXTS = (".json", ".txt", ".jinja", ".model", ".md")  # kinds of files that are copied; never code
SAVED_BY = ("quantization_config", "compression_config", "sparsity_config")


def save_sparse(
    model: nn.Module,
    folder: str | Path,
    *,
    layout: str = "dense",
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pruned model of transformers to a folder, whole or not at all; zeros stay exact.

    layout: "dense", a folder that `from_pretrained` opens; "bitmask", smaller, which
    `intarsia.sparse.convert_sparse` turns into such a folder; "pack-quantized", int4 in groups of
    16, which `from_pretrained` opens: zeros stay, other weights are rounded, except in layers that
    `Gqsa(symmetric=True)` has packed.
    tokenizer: is written next to it; None = the one that belongs to the folder or repository from
    which the model was loaded, if this machine has it.
    record: file name -> its contents, written as JSON.

    Raises: TargetError for a model with adapters, or of another library, or without layers to pack;
    MissingExtra for "pack-quantized" without compressed-tensors; ConfigError for an unknown layout,
    and a folder with other files in it; TrainingError if it cannot be written.
    """
    one_of("layout", layout, (*LAYOUTS, PACKED))
    host: Any = base_of(model)
    if is_adapted(model):
        fix = "Fold the adapters first: intarsia.fold(model, keep_zeros=True)."
        raise TargetError("model", got="one with adapters", want="a plain one", fix=fix)
    if not isinstance(host, PreTrainedModel):
        want, fix = "a model of transformers", "Use intarsia.save, or hosts.export_timm for timm."
        raise TargetError("model", got=type(host).__name__, want=want, fix=fix)
    parts, quantised = packed(host) if layout == PACKED else ({}, None)
    ours = sealed_names(Path(folder), CONFIG)
    # files of another layout are replaced where all are ours
    replaced = ours and not {path.name for path in Path(folder).iterdir()} - {*ours}
    # a folder with files of others is spared: it is refused, unless the new files replace them
    with writing(folder, refuse_loss=not replaced) as scratch:
        host.save_pretrained(scratch)
        tokenizer_to_save = tokenizer or tokenizer_of(host)
        if tokenizer_to_save is not None:
            tokenizer_to_save.save_pretrained(scratch)
        for name, value in (record or {}).items():
            (scratch / name).write_text(json.dumps(value, indent=1) + "\n")
        # the model's library writes everything; then weights are written again in the layout
        if layout == "bitmask":
            _write(scratch, read_folder(scratch), layout)
        if quantised is not None:
            # weights of packed layers are replaced, everything else stays
            packs = {name.rpartition(".")[0] for name in parts}
            # only the bias of a packed layer is kept as it is
            weights = read_folder(scratch).items()
            unpacked = {
                n: t for n, t in weights if n.endswith(".bias") or n.rpartition(".")[0] not in packs
            }
            _write(scratch, unpacked | parts, "dense")
            config = read_json(scratch / CONFIG)
            config["quantization_config"] = quantised
            (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        seal_stock(scratch)
    return Path(folder)


def tokenizer_of(host: Any) -> Any:
    """Return the tokenizer of the folder or cached repository from which a model was loaded.

    None if this machine has none, or the model reads no text.
    """
    source = getattr(host, "name_or_path", "")
    if not source:
        return None
    from transformers import AutoTokenizer

    try:
        # from the cache of this machine alone, and without code of the repository
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    # a model of pictures, or one that was loaded from elsewhere
    except (OSError, ValueError, KeyError):
        return None


def convert_sparse(old: str | Path, new: str | Path, *, layout: str = "dense") -> Path:
    """Convert a folder of sparse weights to another layout, in a new folder.

    old: a folder of compressed-tensors' `sparse-bitmask` or `sparse-24-bitmask`, of `save_sparse`,
    or of save_pretrained; new: does not exist yet. Configuration and tokenizer are copied.
    layout: see `save_sparse`; for "pack-quantized" transformers builds the model that the
    configuration names.

    Raises: CheckpointError for a folder without weights, damaged ones, quantised ones, or of a
    model that transformers does not have; ConfigError for a `new` with anything else than the
    same weights; as `save_sparse`.
    """
    one_of("layout", layout, (*LAYOUTS, PACKED))
    old, new = Path(old), Path(new)
    check_target(new, own=() if layout == PACKED else sealed_names(new, CONFIG))
    if layout == PACKED:
        return _packed_folder(old, new)
    tensors = read_folder(repaired(old))
    with writing(new) as scratch:
        scratch.mkdir()
        for path in old.iterdir():
            if path.suffix in TEXTS and path.name not in (CONFIG, INDEX, STOCK):
                copy_file(path, scratch / path.name)
        config = _read_object(old / CONFIG) if (old / CONFIG).is_file() else {}
        # these would make transformers open the new weights in the old format
        config = {name: value for name, value in config.items() if name not in SAVED_BY}
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _write(scratch, tensors, layout)
        seal_stock(scratch)
        check_same_result(scratch / STOCK, new / STOCK)
    return new


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise damaged(path, f"no readable JSON ({error})", "save_pretrained") from error
    if not isinstance(content, dict):
        raise damaged(path, f"a {type(content).__name__}", "save_pretrained")
    return cast("dict[str, Any]", content)


def _packed_folder(old: Path, new: Path) -> Path:
    """Convert a folder to "pack-quantized", and return the new one."""
    import transformers

    with tempfile.TemporaryDirectory() as place:
        dense = convert_sparse(old, Path(place) / "dense")
        config = dense / CONFIG
        # the class of a trusted library, chosen by name: no code of the folder is run
        named = read_json(config).get("architectures") or [None]
        kind = getattr(transformers, str(named[0]), None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            want, fix = "a model of transformers", "Convert it to dense or bitmask."
            raise CheckpointError(str(old / CONFIG), got=named[0], want=want, fix=fix)
        # built, since its blocks decide which layers are packed
        model = kind.from_pretrained(dense)
        save_sparse(model, new, layout=PACKED)
        for path in dense.iterdir():
            if path.suffix in TEXTS and not (new / path.name).exists():
                copy_file(path, new / path.name)
        seal_stock(new)
    return new


def layout_of(folder: Path) -> str:
    """Return the layout of a folder's weights by the names of its tensors: "dense" or "bitmask"."""
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            if any(name.endswith(".bitmask") for name in file.keys()):  # noqa: SIM118
                return "bitmask"
    return "dense"


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a folder by name; those that are stored with a bitmask are decoded.

    Raises: CheckpointError for no weights, or files that are damaged, missing or hold something
    else.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        want, fix = "*.safetensors", "Give a folder of save_pretrained or of `intarsia sparsify`."
        raise CheckpointError(str(folder), got="no weights", want=want, fix=fix)
    # our folders have digests of their files; of stock ones the list of shards alone is checked
    check_if_sealed(folder)
    check_shards(folder)
    stored: dict[str, Tensor] = {}
    for path in files:
        try:
            stored |= read_tensors(path)
        except (OSError, SafetensorError) as error:
            raise damaged(path, f"no readable safetensors file ({error})") from error
    # a weight with a bitmask is stored as several tensors
    return decoded(folder, stored)


def check_shards(folder: Path) -> None:
    """Check that a folder has every file that its index names.  Raises: CheckpointError."""
    names = _read_object(folder / INDEX).get("weight_map") if (folder / INDEX).is_file() else {}
    if not isinstance(names, Mapping):
        raise damaged(folder / INDEX, "no 'weight_map'", "save_pretrained")
    named = {str(name) for name in cast("Mapping[str, Any]", names).values()}
    missing = sorted(named - {path.name for path in folder.iterdir()})
    if missing:
        want, fix = f"every file that {INDEX} names", "Copy the folder again from its source."
        got = f"no {missing[0]!r} ({len(missing)} missing)"
        raise CheckpointError(str(folder), got=got, want=want, fix=fix)


def decoded(folder: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by name, from a folder's stored tensors; those with a bitmask are decoded.

    Raises: CheckpointError.
    """
    _check_parts(folder, stored)
    names = {n.rpartition(".")[0] for n in stored if n.endswith(".bitmask")}
    encoded = {f"{name}.{part}" for name in names for part in PARTS}
    weights = {n: t for n, t in stored.items() if n not in encoded}
    for name in sorted(names):
        try:
            shape = [int(side) for side in stored[f"{name}.shape"].tolist()]
            # row offsets follow from the bitmask, and are not read
            parts = {p: stored[f"{name}.{p}"] for p in ("compressed", "bitmask")}
            parts["compressed"] = parts["compressed"].flatten()  # a 2:4 layout stores them in rows
            weights[name] = Bitmask().decode(parts, shape)
        except (KeyError, ShapeError, TypeError, RuntimeError) as error:
            raise damaged(folder, f"{name!r} that does not fit together ({error})") from error
    return weights


def _check_parts(folder: Path, stored: Mapping[str, Tensor]) -> None:
    """Check that no weight is quantised by another library, which would have to unpack it."""
    quantised = [n for n in stored if n.endswith((".weight_packed", ".weight_scale"))]
    if quantised:
        got = f"quantised weights, such as {quantised[0]!r}"
        fix = "Open it with the library that wrote it, which unpacks it; prune what comes out."
        raise CheckpointError(str(folder), got=got, want="real numbers", fix=fix)


def _write(folder: Path, tensors: Mapping[str, Tensor], layout: str) -> None:
    """Replace the weights in a folder by the given tensors, in a layout."""
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink(missing_ok=True)
    if layout == "dense":
        save_file(dict(tensors), folder / DENSE, metadata={"format": "pt"})
        return
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        packed = Bitmask().encode(tensor) if tensor.dim() == 2 else {}
        size = sum(t.numel() * t.element_size() for t in packed.values())
        # a bitmask costs one bit per weight: a dense weight would grow
        if packed and size < tensor.numel() * tensor.element_size():
            stored |= {f"{name}.{part}": value for part, value in packed.items()}
            stored[f"{name}.shape"] = torch.tensor(tensor.shape)
        else:
            stored[name] = tensor
    save_file(stored, folder / SPARSE, metadata={"format": "pt"})
    path = folder / CONFIG
    if path.is_file():
        config = read_json(path)
        # as compressed-tensors described such folders, so that its readers know the format
        config["compression_config"] = {
            "quant_method": "compressed-tensors",
            "sparsity_config": {"format": "sparse-bitmask", "sparsity_structure": "unstructured"},
        }
        path.write_text(json.dumps(config, indent=2) + "\n")
