"""The forms of the MLPs of timm and transformers, by the names of their linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Add = Callable[[str, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Dialect:
    """y = behind(writes(between(reads[0](x)))), or of between(reads[0](x)) * reads[1](x).

    reads, writes: names of the linear maps.  between, behind: names of the operations there, in
    this order, where the MLP has it; the first is the activation, after which the gated factor
    follows. halves: reads[0] makes both, first what the activation reads, then the factor.
    """

    reads: tuple[str, ...]
    writes: str
    between: tuple[str, ...]
    behind: tuple[str, ...] = ()
    halves: bool = False

    @property
    def linears(self) -> tuple[str, ...]:
        return (*self.reads, self.writes)

    def fits(self, children: Iterable[str]) -> bool:
        """Return True if a module is an MLP of this form, by the names of its children."""
        names = set(children)
        return {*self.linears} <= names <= {*self.linears, *self.between, *self.behind}

    def inner(self, module: Any, hidden: Sequence[Tensor]) -> Tensor:
        """Compute the input of an MLP's last linear map from the outputs of its first ones.

        module: the MLP, which has activation, dropout and norm; hidden: the outputs (..., h) of its
          first maps: one, or two if one of them is the factor of a gated MLP.  -> (..., h).
        """
        # the activation comes first, then the gated factor, then dropout and norm
        # `halves`: one map gives both, the activation's input and the factor
        y, *factors = hidden[0].chunk(2, -1) if self.halves else hidden
        act, *rest = (part for name in self.between if (part := getattr(module, name, None)))
        y = act(y) * factors[0] if factors else act(y)
        for part in rest:
            y = part(y)
        return y

    def after(self, module: Any, y: Tensor) -> Tensor:
        """Apply the modules that follow the MLP's last linear map, such as a dropout."""
        for name in self.behind:
            part = getattr(module, name, None)
            y = y if part is None else part(y)
        return y

    def compute(self, module: Any, x: Tensor, add: Add) -> Tensor:
        """Compute an MLP of this form, where a function may change each linear map's output.

        module: the MLP; x: (..., d); add: add(name, y, x) returns what takes the place of y, the
          output of the linear map `name` for the input x: with an adapter, y and its output.
        """

        def linear(name: str, x: Tensor) -> Tensor:
            return add(name, module.get_submodule(name)(x), x)

        hidden = self.inner(module, [linear(name, x) for name in self.reads])
        return self.after(module, linear(self.writes, hidden))


DIALECTS = (
    Dialect(("gate_proj", "up_proj"), "down_proj", ("act_fn",)),  # Llama, Mistral, Qwen, Gemma
    # timm; ViT, CLIP and SigLIP of transformers
    Dialect(("fc1",), "fc2", ("act", "activation_fn", "drop1", "norm"), ("drop2",)),
    Dialect(("lin1",), "lin2", ("activation",), ("dropout",)),  # DistilBERT
    Dialect(("gate_up_proj",), "down_proj", ("activation_fn",), halves=True),  # Phi-3, GLM
    Dialect(("Wi",), "Wo", ("act", "drop"), halves=True),  # ModernBERT
    Dialect(("up_proj",), "down_proj", ("act_fn",)),  # Nemotron
    Dialect(("dense_h_to_4h",), "dense_4h_to_h", ("act",)),  # GPT-NeoX, Falcon
    Dialect(("fc_in",), "fc_out", ("act",), ("dropout",)),  # GPT-J, CodeGen
    Dialect(("c_fc",), "c_proj", ("act",), ("dropout",)),  # GPT-2
    Dialect(("wi",), "wo", ("act", "dropout")),  # T5
    Dialect(("wi_0", "wi_1"), "wo", ("act", "dropout")),  # T5 v1.1
    Dialect(
        ("intermediate_dense",),
        "output_dense",
        ("intermediate_act_fn", "intermediate_dropout"),
        ("output_dropout",),
    ),  # Wav2Vec2
)
