"""Llama-like models as one GGUF file, which llama.cpp and programs built on it run.

export_gguf(model, "model.gguf", tokenizer=tokenizer, quant="q4_0")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.change import steps_of
from ...core.errors import ConfigError, ExportError, UnknownName
from ...core.files import writing
from ...hosts.anatomy.blocks import wrapped_paths
from ...hosts.attach.peft import is_adapted
from .gguf_vocab import Vocabulary, vocabulary_of, write_vocabulary
from .graphs import needs, target_of

Report = Callable[[str], None]
# transformers' class -> llama.cpp's architecture
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
QUANTS = ("f32", "bf16", "q8_0", "q4_0")
BLOCK = 32  # weights of a row that share a scale
# root mean square of a tensor's rounding relative to its weights' own, with room for outliers
ROUNDING = {"F32": 0.0, "BF16": 2.0**-8, "Q8_0": 0.02, "Q4_0": 0.2}
HEADS = ("token_embd.weight", "output.weight")
# the biases that an architecture of llama.cpp reads
BIASES = {
    "llama": ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    "qwen2": ["attn_q", "attn_k", "attn_v"],
}
STOCK = "Fold it first: intarsia.fold(model). A mixture or a model with spans has no such file."


@dataclass(frozen=True)
class GgufNames:
    """Model with its architecture in llama.cpp, and GGUF's name of each tensor."""

    model: Any
    architecture: str
    names: dict[str, str]  # the model's own -> GGUF's

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor with its rows in llama.cpp's order, by GGUF's name."""
        state = self.model.state_dict()
        for path, name in self.names.items():
            yield name, self.ordered(path, state[path])

    def ordered(self, path: str, tensor: Tensor) -> Tensor:
        """Return a tensor with the rows of queries and keys in the order of llama.cpp's "llama".

        transformers rotates feature i of a head with i + D / 2, llama.cpp 2 i with 2 i + 1. Other
        tensors are returned as they are.
        """
        if (heads := self.turned(path)) is None:
            return tensor
        # rows (head, half, i) -> (head, i, half)
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def restored(self, path: str, tensor: Tensor) -> Tensor:
        """Return a file's tensor with its rows in the model's order, the inverse of `ordered`."""
        if (heads := self.turned(path)) is None:
            return tensor
        # rows (head, i, half) -> (head, half, i)
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    def turned(self, path: str) -> int | None:
        """Return the heads of a tensor with rows in another order in the file, else None."""
        part = re.search(r"\.([qk])_proj\.", path)
        if self.architecture != "llama" or part is None:
            return None
        config = self.model.config
        return config.num_attention_heads if part[1] == "q" else config.num_key_value_heads


def export_gguf(
    model: nn.Module,
    path: str | Path,
    *,
    tokenizer: Any,
    quant: str = "bf16",
    report: Report = print,
) -> Path:
    """Write a Llama-like model and its tokenizer as one GGUF file, and read it back.

    For Llama, Mistral, SmolLM2, Qwen2, Qwen3 and Phi-3 of transformers, with a byte-pair tokenizer
    that splits text as one of llama.cpp's rules does; the chat template is written, too. Every
    tensor of the file is compared with the model's.

    quant: "f32"; "bf16"; "q8_0" and "q4_0" round the matrices in blocks of 32 weights, by the
      `gguf` package's own code. With "q4_0" embedding and head have 8 bits, as llama.cpp's own
      files do. Norms and biases stay float32.
    path: *.gguf; report: is given a line of text.
    Raises: ExportError for a model or a tokenizer that llama.cpp has no words for, and a file that
    comes back different; ConfigError for a path that is not *.gguf or rows that are no blocks;
    UnknownName for another quant; MissingExtra without intarsia[export].
    """
    target = target_of(path, ".gguf")
    gguf = needs("gguf")
    if quant not in QUANTS:
        raise UnknownName("quant", quant, QUANTS)
    named = names_in_gguf(model)
    types = _tensor_types(gguf, named, quant)
    vocabulary = vocabulary_of(tokenizer, named.model.config.vocab_size)
    extra = _frequencies(named)
    with writing(target) as scratch:
        writer = gguf.GGUFWriter(scratch, named.architecture)
        _describe(gguf, writer, named, quant)
        write_vocabulary(writer, vocabulary)
        _write(gguf, writer, named, types, extra)
        # compared before the file gets its name
        worst = _read_back(gguf, scratch, named, types, vocabulary)
    size = target.stat().st_size / 1e6
    rounded = ", ".join(f"{kind} {100 * share:.2g} %" for kind, share in sorted(worst.items()))
    report(
        f"export_gguf: {target}, {named.architecture}, {size:.1f} MB; weights that were read back "
        f"differ by at most (root mean square of a tensor): {rounded}.{_context_note(named)}"
    )
    return target


def names_in_gguf(model: nn.Module) -> GgufNames:
    """Return a stock model with the names of all its tensors in GGUF.

    Raises: ExportError for a model that was changed to something else than stock modules, of
    another architecture, or with settings that llama.cpp's has not.
    """
    if is_adapted(model) or wrapped_paths(model):
        got, want = "a model with adapters in it", "a stock model"
        raise ExportError("export_gguf", got=got, want=want, fix=STOCK)
    changed = [type(step.plan.change).__name__ for step in steps_of(model) if not step.plain]
    if changed:
        got, want = f"a model with {', '.join(changed)} in it", "a stock model"
        raise ExportError("export_gguf", got=got, want=want, fix=STOCK)
    host: Any = model
    state = host.state_dict()
    if "lm_head.weight" in state and _has_tied_head(host):
        # GGUF leaves a tied head out: the embedding then serves as head
        del state["lm_head.weight"]
    named = names_for(host, state)
    _check_shapes(host, state)
    return named


def names_for(host: Any, paths: Iterable[str]) -> GgufNames:
    """Return the architecture of a transformers model in llama.cpp, and GGUF's names of tensors.

    Raises: ExportError for an architecture, settings or tensors that llama.cpp does not know.
    """
    name = type(host).__name__
    if name not in ARCHITECTURES:
        want, fix = f"one of {', '.join(ARCHITECTURES)}", "Use llama.cpp's convert_hf_to_gguf.py."
        raise ExportError("model for GGUF", got=name, want=want, fix=fix)
    _check_settings(host.config)
    gguf, kind = needs("gguf"), ARCHITECTURES[name]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], host.config.num_hidden_layers)
    names = {path: table.get_name(path, try_suffixes=(".weight", ".bias")) for path in paths}
    biases = BIASES.get(kind, ())
    for path, gguf_name in names.items():
        if gguf_name is None or (
            gguf_name.endswith(".bias") and gguf_name.split(".")[-2] not in biases
        ):
            got, want = f"a tensor {path!r}", f"those that llama.cpp's {kind!r} has"
            raise ExportError("model for GGUF", got=got, want=want, fix=STOCK)
    return GgufNames(host, kind, names)


def _has_tied_head(host: Any) -> bool:
    """Return True if the output head is the embedding itself, which GGUF stores once."""
    return host.lm_head.weight.data_ptr() == host.get_input_embeddings().weight.data_ptr()


def _check_shapes(host: Any, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        # on "meta": shapes alone
        like = type(host)(host.config).state_dict()
    wrong = [n for n, t in state.items() if n not in like or like[n].shape != t.shape]
    missing = sorted(like.keys() - state.keys() - {"lm_head.weight"})
    if wrong or missing:
        got = f"{wrong[0]!r} of another shape" if wrong else f"no {missing[0]!r}"
        want = f"the tensors of {type(host).__name__}"
        raise ExportError("model for GGUF", got=got, want=want, fix=STOCK)


def _check_settings(config: Any) -> None:
    """Check that llama.cpp can represent a config: activation, rotary positions and head width."""
    rope = config.rope_parameters
    settings = {
        "hidden_act": (config.hidden_act, ("silu",)),
        "rope_type": (rope.get("rope_type", "default"), ("default", "linear", "llama3", "yarn")),
        "partial_rotary_factor": (rope.get("partial_rotary_factor") or 1.0, (1.0,)),
        "attention_factor of yarn": (rope.get("attention_factor"), (None,)),
        "truncate of yarn": (rope.get("truncate", True), (True,)),
    }
    if type(config).__name__ not in ("LlamaConfig", "MistralConfig", "Qwen3Config"):
        # these architectures of llama.cpp compute the width of a head themselves
        width = config.hidden_size // config.num_attention_heads
        settings["head_dim"] = (_head_dim(config), (width,))
    for name, (got, supported) in settings.items():
        if got not in supported:
            want = " or ".join(map(str, supported))
            fix = "llama.cpp has no word for it; export another model."
            raise ExportError(f"{name} of the model for GGUF", got=got, want=want, fix=fix)


def _head_dim(config: Any) -> int:
    stated = getattr(config, "head_dim", None)
    return stated or config.hidden_size // config.num_attention_heads


def _tensor_types(gguf: Any, named: GgufNames, quant: str) -> dict[str, Any]:
    kinds = gguf.GGMLQuantizationType
    state, types = named.model.state_dict(), dict[str, Any]()
    for path, name in named.names.items():
        kind = quant if state[path].dim() > 1 else "f32"
        # rounding errors of embedding and head reach every token
        if kind == "q4_0" and name in HEADS:
            kind = "q8_0"
        if kind.startswith("q") and state[path].shape[-1] % BLOCK:
            got, want = f"{path!r} with rows of {state[path].shape[-1]}", f"rows of n x {BLOCK}"
            raise ConfigError(f"quant={quant!r}", got=got, want=want, fix="Use quant='bf16'.")
        types[name] = kinds[kind.upper()]
    return types


def _describe(gguf: Any, writer: Any, named: GgufNames, quant: str) -> None:
    config, rope = named.model.config, named.model.config.rope_parameters
    writer.add_type(gguf.GGUFType.MODEL)
    # llama.cpp recognises Phi-3's tokenizer by "phi-3" in the name
    writer.add_name(Path(config.name_or_path).name)
    file_type = "ALL_F32" if quant == "f32" else f"MOSTLY_{quant.upper()}"
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        # yarn stretches the context that the model was trained with
        first = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(first)
        for setting in ("beta_fast", "beta_slow"):
            if rope.get(setting) is not None:
                getattr(writer, f"add_rope_scaling_yarn_{setting}")(rope[setting])


def _context(config: Any) -> int:
    """Return the longest context, in tokens, in which llama.cpp computes the same as the model."""
    window = getattr(config, "sliding_window", None)
    # its Llama has no sliding window: where the model has one, that is the limit
    longest = config.max_position_embeddings
    return longest if window is None else min(window, longest)


def _context_note(named: GgufNames) -> str:
    """Return a note for the report if a sliding window limits the context; "" otherwise."""
    config = named.model.config
    if _context(config) == config.max_position_embeddings:
        return ""
    return (
        f" Its context is the sliding window, {_context(config)} tokens: llama.cpp has none here."
    )


def _frequencies(named: GgufNames) -> dict[str, Tensor]:
    """Return the divisors of the rotary frequencies for Llama 3's scaling, {} for other models."""
    config = named.model.config
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return {}
    scaled = named.model.model.rotary_emb.inv_freq.detach().float().cpu()
    # theta^(-2 i / D), the frequencies without Llama 3's scaling
    plain = rope["rope_theta"] ** -(torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled)))
    # (D / 2,), plain frequencies over scaled ones
    return {"rope_freqs.weight": plain / scaled}


def _write(
    gguf: Any, writer: Any, named: GgufNames, types: dict[str, Any], extra: dict[str, Tensor]
) -> None:
    """Write header and tensors, one after the other, so that one at a time is in memory."""
    exact = gguf.GGMLQuantizationType.F32
    state = named.model.state_dict()
    shapes = {name: tuple(state[path].shape) for path, name in named.names.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in extra.items()}
    # names and shapes first, since GGUF has them all in front of the numbers
    for name, shape in shapes.items():
        kind = types.get(name, exact)
        if kind == exact:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
            continue
        stored = gguf.quant_shape_to_byte_shape(shape, kind)
        size = int(np.prod(stored))
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in chain(named.tensors(), extra.items()):
        writer.write_tensor_data(gguf.quants.quantize(numbers_of(tensor), types.get(name, exact)))
    writer.close()


def numbers_of(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array of float32."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _read_back(
    gguf: Any, file: Path, named: GgufNames, types: dict[str, Any], vocabulary: Vocabulary
) -> dict[str, float]:
    """Compare a file with the model; return the largest rounding error of a tensor, by type."""
    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    worst: dict[str, float] = {}
    for name, tensor in named.tensors():
        want, kind = numbers_of(tensor), types[name].name
        # every tensor is decoded again: a wrong order of rows would show only in the text
        got = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        # relative to the tensor's own norm: weights of different layers differ in size
        scale = float(np.linalg.norm(want))
        share = float(np.linalg.norm(got.reshape(want.shape) - want)) / (scale or 1.0)
        if not share <= ROUNDING[kind]:
            got, want = f"{name} differs by {share:.1%}", f"at most {ROUNDING[kind]:.1%}"
            fix = "Weights beyond float16, or of few outliers: use quant='bf16'."
            raise ExportError("export_gguf", got=got, want=want, fix=fix)
        worst[kind] = max(worst.get(kind, 0.0), share)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    if tokens != list(vocabulary.tokens):
        got, want = f"{len(tokens)} others", f"the tokenizer's {len(vocabulary.tokens)}"
        raise ExportError("tokens that were read back", got=got, want=want, fix="Report this.")
    return worst
