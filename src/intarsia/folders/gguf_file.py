"""A language model in a GGUF file, packed without a loss: codes of Q4_0 and Q8_0 as they come.

opened = open_gguf("model.gguf")
model, tokenizer = packed_gguf(opened), opened.tokenizer
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..core.errors import AssetError, IntarsiaError
from ..data.language_models import quietly
from ..formats import BlockInt
from ..hosts.changing import apply_plan
from ..kernels.blockint import BUNDLE
from ..sparse.swap.compress import Compress, matrices_of, packing
from .out.gguf_model import ARCHITECTURES, GgufNames, names_for
from .out.graphs import needs

EXACT = {"Q4_0": 4, "Q8_0": 8}  # GGUF's types that are formats of ours, with their bits
DENSE = ("F32", "F16", "BF16")
WIDE = 5.0  # bits a weight of GGUF's types, from above which 8 bits are stored, and not 4
PIECE = 4_000_000  # weights that are decoded at a time
FREQUENCIES = "rope_freqs.weight"  # divisors of the rotary frequencies, of Llama 3
CONTEXTS = [2**k for k in range(4, 21)]  # tokens that a model of Llama 3's scaling began with
SAFE = "Convert its safetensors: intarsia compress FOLDER --format blockint"


@dataclass(frozen=True)
class GgufModel:
    """GGUF file with its tensors mapped, and the model of transformers that it describes.

    path: of the file; host: the model, its weights on the meta device; names: of its tensors in the
    file; tensors: of the file by name, as `gguf.GGUFReader` has them.
    """

    path: Path
    host: Any
    tokenizer: Any
    names: GgufNames
    tensors: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the file's tensors."""
        return sum(int(tensor.n_bytes) for tensor in self.tensors.values())

    @property
    def format(self) -> str:
        """Types of the tensors with their counts, as "GGUF with 211 Q4_0, 61 F32"."""
        kinds = Counter(str(tensor.tensor_type.name) for tensor in self.tensors.values())
        return f"GGUF with {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"

    def kind(self, path: str) -> str:
        """Return GGUF's type of a tensor, as "Q4_0"; path: its name in the model."""
        return str(self._tensor(path).tensor_type.name)

    def pieces(self, path: str) -> Iterator[Tensor]:
        """Yield the rows of a tensor in float32, some at a time; path: its name in the model.

        Raises: AssetError for numbers that are not finite.
        """
        gguf, kind = needs("gguf"), self._tensor(path).tensor_type
        for rows in self._rows(path):
            numbers = torch.from_numpy(np.array(gguf.quants.dequantize(rows, kind), np.float32))
            yield self._finite(path, numbers)

    def numbers(self, path: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor of the file in a type of torch.  Raises: as `pieces`."""
        numbers, first = torch.empty(self.shape(path), dtype=dtype), 0
        for rows in self.pieces(path):
            numbers[first : first + len(rows)] = rows
            first += len(rows)
        return numbers

    def stored(self, path: str, bits: int) -> dict[str, Tensor]:
        """Return a matrix as `BlockInt` stores it, its codes unchanged in type Q4_0 or Q8_0.

        Raises: AssetError for numbers or scales that are not finite.
        """
        form = BlockInt(bits)
        if EXACT.get(self.kind(path)) == bits:
            width = self.shape(path)[1]
            rows = (torch.from_numpy(rows) for rows in self._rows(path))
            parts = [form.of_gguf(data, (len(data), width)) for data in rows]
        else:
            parts = [form.encode(numbers) for numbers in self.pieces(path)]
        stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._finite(path, stored["scales"])
        return stored

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the sides of a tensor; path: its name in the model."""
        return tuple(int(side) for side in self._tensor(path).shape[::-1])

    def _rows(self, path: str) -> Iterator[np.ndarray]:
        """Yield the rows of a tensor as the file has them, in the model's order."""
        data, shape = self._tensor(path).data, self.shape(path)
        if self.names.turned(path):
            data = self.names.restored(path, torch.from_numpy(np.array(data))).numpy()
        # some rows at a time, as many as a format bundles: decoding takes several times their
        # memory
        count = len(data)
        if len(shape) > 1:
            count = -(-PIECE // max(1, BUNDLE * shape[-1])) * BUNDLE
        for first in range(0, len(data), count):
            yield np.array(data[first : first + count])

    def _tensor(self, path: str) -> Any:
        return self.tensors[self.names.names[path]]

    def _finite(self, path: str, numbers: Tensor) -> Tensor:
        if not numbers.isfinite().all():
            raise _damaged(self.path, f"NaN or infinity in {self.names.names[path]}")
        return numbers


def open_gguf(path: str | Path) -> GgufModel:
    """Map a GGUF file, and build the model and the tokenizer that it describes, without weights.

    path: *.gguf of a Llama (Mistral, SmolLM2, ...), Qwen2, Qwen3 or Phi-3.
    Raises: AssetError for another architecture, a part of several files, tensors that the model has
    not, or a damaged file; MissingExtra without the `gguf` package.
    """
    gguf, path = needs("gguf"), Path(path)
    try:
        reader = _reader(gguf)(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _short(field)}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        _check_known(path, fields)
        config = _config(fields, tensors)
        with quietly():
            # the class is named, or the whole header would be read to choose it
            place: dict[str, Any] = {"gguf_file": path.name}
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), **place)
        _complete(config, fields, tensors, tokenizer)
        with no_init_weights():
            host: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        _forget_weights(host)
        host.tie_weights()
        paths = set(host.state_dict())
        if config.tie_word_embeddings:
            paths.discard("lm_head.weight")
        names = names_for(host, sorted(paths))
        _check_tensors(path, host, names, tensors)
    except IntarsiaError:
        raise
    except Exception as error:  # struct.error, IndexError, ValueError, KeyError, MemoryError ...
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return GgufModel(path, host.eval(), tokenizer, names, tensors)


def packed_gguf(
    file: GgufModel,
    *,
    bits: int | None = None,
    head: int | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> nn.Module:
    """Pack the linear layers and the head of a GGUF file's model, one tensor at a time.

    Q4_0 and Q8_0 keep their codes and scales, so that each weight is what the file says. Matrices
    of other types are decoded and rounded as `BlockInt` rounds, to `bits`; None = 4 for types of up
    to 5 bits a weight and for floats, 8 for the others. Embedding, norms and biases are decoded: to
    bfloat16 where it holds all of them unchanged, otherwise to float32.
    head: None = as the file has it, rounded to 8 bits if that is neither Q4_0 nor Q8_0; 8 or 4 =
    in so many bits; "same" = decoded, like the embedding. progress: gets a line of text
    for matrices that are rounded.
    Raises: AssetError for numbers that are not finite.
    """
    # what is rounded, for the line that says so
    host, rounded = file.host, Counter[str]()
    matrices = {f"{layer}.weight": layer for layer in matrices_of(host, ())}
    groups: dict[int, dict[str, dict[str, Tensor]]] = {}
    for path, layer in matrices.items():
        number_of_bits, stored = _stored(file, path, bits, rounded, exact=True)
        groups.setdefault(number_of_bits, {})[layer] = stored
    source = "lm_head.weight" if "lm_head.weight" in file.names.names else _embedding(host)
    in_head = {}
    if head != "same":
        settings = {"bits": 8 if head is None else int(head), "exact": head is None}
        in_head = dict([_stored(file, source, settings["bits"], rounded, settings["exact"])])
    owners = dict(host.named_parameters())  # a tied head has the embedding's name alone
    unpacked = owners.keys() - matrices.keys() - ({"lm_head.weight"} if in_head else set())
    dtype = _narrowest(file, unpacked)
    floats = {path: file.numbers(path, dtype) for path in sorted(unpacked)}
    host.load_state_dict(floats, strict=False, assign=True)
    host.tie_weights()
    host.config.dtype = dtype
    # a plan names its layers where another one has the rest
    plans = [(n, some, tuple(some) if len(groups) > 1 else ()) for n, some in groups.items()]
    plans += [(n, {"lm_head": stored}, ("lm_head",)) for n, stored in in_head.items()]
    for number, some, layers in plans:
        shapes = {layer: tuple(host.get_submodule(layer).weight.shape) for layer in some}
        change = Compress(BlockInt(number), layers)
        apply_plan(host, packing(change, 0, shapes, some, {}))
    if progress and rounded:
        progress("; ".join(f"{count} matrices {kind}" for kind, count in sorted(rounded.items())))
    return host


def _forget_weights(host: nn.Module) -> None:
    """Put weights that nobody has written on the meta device; buffers stay."""
    for module in host.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to("meta"))


def _embedding(host: Any) -> str:
    """Return the name of the embedding's weight."""
    weight = host.get_input_embeddings().weight
    return next(name for name, tensor in host.named_parameters() if tensor is weight)


def _stored(
    file: GgufModel, path: str, bits: int | None, rounded: Counter[str], exact: bool
) -> tuple[int, dict[str, Tensor]]:
    """Return the bits of a code, and a matrix as it is stored; count it if it is rounded."""
    kind = file.kind(path)
    exact_bits = EXACT.get(kind)
    # exact: the codes that the file has, whatever `bits` says
    if exact_bits is not None and (exact or exact_bits == bits):
        return exact_bits, file.stored(path, exact_bits)
    if bits is None:
        block, size = needs("gguf").GGML_QUANT_SIZES[
            file.tensors[file.names.names[path]].tensor_type
        ]
        bits = 8 if kind not in DENSE and 8 * size / block > WIDE else 4
    rounded[f"of type {kind} rounded to {bits} bits"] += 1
    return bits, file.stored(path, bits)


def _narrowest(file: GgufModel, paths: Collection[str]) -> torch.dtype:
    """Return bfloat16 if it holds the numbers of all these tensors unchanged, else float32."""
    # small ones first: one number that it does not hold is enough
    order = sorted(paths, key=lambda path: (math.prod(file.shape(path)), path))
    pieces = (rows for path in order for rows in file.pieces(path))
    narrow = all(torch.equal(rows.to(torch.bfloat16).float(), rows) for rows in pieces)
    return torch.bfloat16 if narrow else torch.float32


def _reader(gguf: Any) -> Any:
    """Return `gguf.GGUFReader` that passes over lists, and refuses a file that ends too early."""
    listing = int(gguf.GGUFValueType.ARRAY)

    # its own would count on, for hours, in a file with a damaged length
    class Bounded(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, **order: Any) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise EOFError(f"{len(self.data)} bytes, of which {end} are read")
            return super()._get(offset, dtype, count, **order)

        # its own makes arrays of each of a vocabulary's 100,000 words
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if int(raw_type) != listing:
                return super()._get_field_parts(orig_offs, raw_type)
            kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
            count = int(self._get(orig_offs + 4, np.uint64)[0])
            size = _list_size(self.data, orig_offs + 12, self.gguf_scalar_to_np.get(kind), count)
            return 12 + size, [], [], [gguf.GGUFValueType.ARRAY, kind]

    return Bounded


def _list_size(data: np.ndarray, first: int, scalar: Any, count: int) -> int:
    """Return the bytes of a list's items, which begin at `first`; scalar: None for texts."""
    if scalar is not None:
        return np.dtype(scalar).itemsize * count
    raw = memoryview(cast(Any, data))
    place, read = first, struct.Struct("<Q").unpack_from
    for _ in range(count):
        place += 8 + read(raw, place)[0]
    return place - first


def _short(field: Any) -> bool:
    """Return True for a field that is no list, as vocabularies are."""
    # a list has the types of its items behind its own
    return len(field.types) == 1


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of a file, as far as its own table of fields goes."""
    kind = model_type = fields["general.architecture"]
    if kind == "llama" and fields.get("general.name") == "mistral":
        model_type = "mistral"
    table: dict[str, Any] = {
        f"{kind}.{field}": name for field, name in GGUF_CONFIG_MAPPING[model_type].items()
    }
    settings = {name: fields[field] for field, name in table.items() if name and field in fields}
    settings["tie_word_embeddings"] = "output.weight" not in tensors
    settings["name_or_path"] = fields.get("general.name", "")
    return AutoConfig.for_model(model_type, **settings)


def _check_known(path: Path, fields: Mapping[str, Any]) -> None:
    """Check that a file is whole, and of an architecture with known names and rows."""
    subject, kind = f"GGUF file {str(path)!r}", fields.get("general.architecture")
    if kind not in (architectures := sorted(set(ARCHITECTURES.values()))):
        want, fix = f"one of {', '.join(architectures)}", f"{SAFE}."
        raise AssetError(subject, got=f"the architecture {kind!r}", want=want, fix=fix)
    if fields.get("split.count", 0) > 1:
        got, fix = f"one of {fields['split.count']} files", "Join them: llama-gguf-split --merge."
        raise AssetError(subject, got=got, want="a model in one file", fix=fix)


def _complete(
    config: Any, fields: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any
) -> None:
    """Set what transformers leaves at its defaults: heads, windows, biases, rotations, tokens."""
    kind = fields["general.architecture"]
    field = lambda name, default=None: fields.get(f"{kind}.{name}", default)  # noqa: E731
    if (width := field("attention.key_length")) and hasattr(config, "head_dim"):
        config.head_dim = width
    if hasattr(config, "sliding_window"):
        config.sliding_window = field("attention.sliding_window")
    for setting, tensor in {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}.items():
        if kind == "llama" and f"blk.0.{tensor}.bias" in tensors:
            setattr(config, setting, True)
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    # llama.cpp's own defaults where the file is silent
    theta = float(field("rope.freq_base", 10_000.0))
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    scaling, factor = (
        field("rope.scaling.type", "linear"),
        field("rope.scaling.factor", field("rope.scale_linear", 0)),
    )
    if scaling != "none" and factor not in (0, 1):
        config.rope_parameters |= {"rope_type": scaling, "factor": factor}
    if scaling == "yarn":
        settings = {
            "original_max_position_embeddings": field("rope.scaling.original_context_length"),
            "beta_fast": field("rope.scaling.yarn_beta_fast"),
            "beta_slow": field("rope.scaling.yarn_beta_slow"),
        }
        config.rope_parameters |= {n: value for n, value in settings.items() if value is not None}
    if FREQUENCIES in tensors:
        config.rope_parameters = _llama3(config, theta, np.array(tensors[FREQUENCIES].data))


def _llama3(config: Any, theta: float, divisors: np.ndarray) -> dict[str, Any]:
    """Return Llama 3's rotations for a file's divisors (D / 2,) of the unscaled frequencies."""
    plain = {"rope_type": "default", "rope_theta": theta}
    if (divisors == 1).all():
        return plain
    halves = 2 * len(divisors)
    frequencies = torch.from_numpy(theta ** -(np.arange(0, halves, 2) / halves) / divisors).float()
    for context in CONTEXTS:
        settings = plain | {
            "rope_type": "llama3",
            "factor": round(float(divisors.max()), 3),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        config.rope_parameters = settings
        got = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
        if got.shape == frequencies.shape and torch.allclose(
            got.float(), frequencies, rtol=1e-3, atol=0
        ):
            return settings
    want = "those of Llama 3: low 1, high 4, a context of a power of 2"
    raise AssetError(FREQUENCIES, got="divisors of another scaling", want=want, fix=f"{SAFE}.")


def _check_tensors(path: Path, host: Any, names: GgufNames, tensors: Mapping[str, Any]) -> None:
    subject, want = f"GGUF file {str(path)!r}", f"the tensors of {type(host).__name__}"
    state = host.state_dict()
    shapes = {
        names.names[path_in_host]: tuple(state[path_in_host].shape) for path_in_host in names.names
    }
    in_file = {name: tuple(int(side) for side in t.shape[::-1]) for name, t in tensors.items()}
    in_file.pop(FREQUENCIES, None)
    for name in sorted(shapes.keys() | in_file.keys()):
        if shapes.get(name) == in_file.get(name):
            continue
        got = f"no {name}"
        if name in in_file:
            got = f"{name} of shape {in_file[name]}"
        fix = f"{SAFE}, for mixtures and other variants." if name not in shapes else "Get it again."
        raise AssetError(subject, got=got, want=want, fix=fix)


def _damaged(path: Path, got: str) -> AssetError:
    want, fix = "the file as it was published", "Get it again, and compare its size."
    return AssetError(f"GGUF file {str(path)!r}", got=got[:200], want=want, fix=fix)
