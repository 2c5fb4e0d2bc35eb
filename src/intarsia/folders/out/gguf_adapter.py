"""A LoRA of a Llama-like model as a GGUF adapter, for llama.cpp's --lora."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from ...core.change import steps_of
from ...core.errors import ExportError, UnknownName
from ...core.files import writing
from ...hosts.attach.as_lora import lora_cells
from ...hosts.attach.lora_form import OURS
from ...hosts.attach.peft import ModulesToSaveWrapper, is_adapted
from ...hosts.attach.plain_lora import is_plain
from .gguf_model import HEADS, GgufNames, Report, names_for, numbers_of
from .graphs import needs, target_of

QUANTS = ("f32", "bf16")
WHOLE = "Write the whole model: export_gguf(intarsia.fold(model), ...), without --keep-adapter."


@dataclass(frozen=True)
class LowRank:
    """Change of one layer's weight, scale B A.  a: A, (r, d_in); b: B, (d_out, r)."""

    path: str
    a: Tensor
    b: Tensor
    scale: float


def export_gguf_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    name: str | None = None,
    quant: str = "f32",
    report: Report = print,
) -> Path:
    """Write the LoRA of a Llama-like model as a GGUF adapter, and read it back.

    For plain LoRA of this library or of PEFT, and adapters that are LoRA after training
    (`intarsia.as_lora`): MoS, MoSA over LoRA. llama.cpp adds it to a GGUF file of the same model:
    `llama-cli -m base.gguf --lora FILE`.

    path: *.gguf; name: the adapter's, None = the active one; quant: "f32" or "bf16"; report: is
    given a line of text.
    Raises: ExportError for other adapters, a trained head, and a model that llama.cpp does not
    know; ConfigError for a path that is not *.gguf, or no such adapter; MissingExtra without
    intarsia[export].
    """
    target = target_of(path, ".gguf")
    gguf = needs("gguf")
    if quant not in QUANTS:
        raise UnknownName("quant of an adapter", quant, QUANTS)
    host, changes = _changes(model, name)
    named = names_for(host, [f"{change.path}.weight" for change in changes])
    tensors, alpha = _tensors(named, changes)
    kind = gguf.GGMLQuantizationType[quant.upper()]
    with writing(target) as scratch:
        writer = gguf.GGUFWriter(scratch, named.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for key, values in tensors.items():
            writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        # compared before the file gets its name
        _read_back(gguf, scratch, tensors)
    ranks = {len(change.a) for change in changes}
    report(
        f"export_gguf_adapter: {target}, LoRA of rank {', '.join(map(str, sorted(ranks)))} at "
        f"{len(changes)} layers of {named.architecture}. llama.cpp: --lora {target}"
    )
    return target


def _changes(model: nn.Module, name: str | None) -> tuple[nn.Module, list[LowRank]]:
    """Return the model without the adapter, and the adapter's low-rank change of each layer."""
    if not isinstance(model, PeftModel):
        got, fix = f"{type(model).__name__} without an adapter", "Use export_gguf."
        raise ExportError("GGUF adapter", got=got, want="a model with a LoRA", fix=fix)
    host = model.get_base_model()
    heads = any(isinstance(m, ModulesToSaveWrapper) for m in model.modules())
    changes_below = [type(step.plan.change).__name__ for step in steps_of(host)]
    # llama.cpp adds low-rank changes to matrices, and nothing else
    if heads or changes_below:
        got = "a trained head" if heads else f"{', '.join(changes_below)} in the model"
        want = "LoRA beside linear layers, and nothing else"
        raise ExportError("GGUF adapter", got=got, want=want, fix=WHOLE)
    if not is_adapted(model):
        return host, list(_of_peft(model, name or str(model.active_adapter)))
    layers, cells = lora_cells(model, name)[2:]
    return host, [
        LowRank(layer.path, cell.down.weight, cell.up.weight, cell.scale)
        for layer, cell in zip(layers, cells, strict=True)
    ]


def _of_peft(model: PeftModel, name: str) -> Iterator[LowRank]:
    """Yield the low-rank change of each layer that an adapter of PEFT's LoRA changes."""
    stored = model.peft_config[name].to_dict()
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    rest = [key for key in tensors if not key.endswith(tuple(OURS))]
    if stored["peft_type"] != "LORA" or not is_plain(stored) or rest:
        got = f"{stored['peft_type']} with other settings, or {rest[:1]}"
        raise ExportError("GGUF adapter", got=got, want="plain LoRA", fix=WHOLE)
    rank = stored["r"]
    # rsLoRA divides by the root of the rank
    scale = stored["lora_alpha"] / (rank**0.5 if stored["use_rslora"] else rank)
    first, second = OURS
    for key, a in tensors.items():
        if key.endswith(first):
            path = key.removeprefix("base_model.model.").removesuffix(first)
            yield LowRank(path, a, tensors[key.replace(first, second)], scale)


def _tensors(named: GgufNames, changes: list[LowRank]) -> tuple[dict[str, np.ndarray], float]:
    """Return A and B of each layer by GGUF's names, and the alpha that they share."""
    alpha = changes[0].scale * len(changes[0].a)
    # alpha / r of the first layer is the scale of all
    tensors: dict[str, np.ndarray] = {}
    for change in changes:
        path = f"{change.path}.weight"
        key = named.names[path]
        if key in HEADS:
            got, want = f"LoRA at {change.path!r}", "layers inside the blocks"
            raise ExportError("GGUF adapter", got=got, want=want, fix=WHOLE)
        # llama.cpp has one alpha for all layers: another scale goes into B
        rest = change.scale * len(change.a) / alpha if alpha else 1.0
        tensors[f"{key}.lora_a"] = numbers_of(change.a)
        tensors[f"{key}.lora_b"] = numbers_of(named.ordered(path, change.b) * rest)
    return tensors, alpha


def _read_back(gguf: Any, file: Path, tensors: dict[str, np.ndarray]) -> None:
    # what the file has, decoded by GGUF's own package
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for key, want in tensors.items():
        got = gguf.quants.dequantize(stored[key].data, stored[key].tensor_type)
        if not np.allclose(got.reshape(want.shape), want, rtol=2.0**-8, atol=0):
            fix = "Report this."
            raise ExportError("GGUF adapter", got=f"another {key}", want="A and B", fix=fix)
