"""A language model's head in few bits, how it and the embedding are stored, and a token's bytes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...core import nbytes
from ...formats import BlockInt
from ...formats.packed_linear import PackedLinear
from ...hosts.anatomy.blocks import base_of
from ...hosts.changing import apply_change
from ...mixtures.packed_experts import PackedStack
from .compress import Compress


def pack_head(model: nn.Module, bits: int = 8) -> nn.Module:
    """Store a language model's head as `BlockInt` of few bits, in place, and return the model.

    A token reads the whole head, and one row of an embedding, which stays as it is where both are
    tied. A head that is packed already, or is none, is left alone. The blocks are what
    `intarsia.compress` packs; `save` and `load` know both.
    bits: of a weight, 8 or 4.
    Raises: ConfigError for other bits; DataError for weights that are not finite.
    """
    form, host = BlockInt(bits), base_of(model)
    head = host.get_output_embeddings() if isinstance(host, PreTrainedModel) else None
    path = next((p for p, m in host.named_modules() if m is head and type(m) is nn.Linear), None)
    return model if path is None else apply_change(model, Compress(form, (path,)))


def head_and_embedding(model: nn.Module) -> dict[str, str]:
    """Describe how the head and the embedding of a model of transformers are stored.

    Returns "head" and "embedding" -> a format or a type of numbers, as "BlockInt(bits=8)"; without
    what the model does not have.
    """
    host: Any = base_of(model)
    parts = {"head": host.get_output_embeddings(), "embedding": host.get_input_embeddings()}
    return {name: _stored_as(part) for name, part in parts.items() if part is not None}


def _stored_as(module: Any) -> str:
    """Return a layer's format, or the type of its weight."""
    if isinstance(module, PackedLinear):
        return repr(module.form)
    weight: Tensor = module.weight
    return str(weight.dtype).removeprefix("torch.")


def token_bytes(model: nn.Module) -> int | None:
    """Count the bytes of the weights that a token's products read, head included.

    Norms, biases and the one row of the embedding are left out. None for a mixture: its tokens
    read some of the experts.
    """
    total = 0
    for module in base_of(model).modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() == 3]
        if matrices or isinstance(module, PackedStack):
            return None
        if isinstance(module, PackedLinear):
            total += nbytes(module.stored)
        elif isinstance(module, nn.Linear | Conv1D):
            total += module.weight.nbytes
    return total
