"""A layer of experts and the router that chooses among them for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.checks import one_of
from ..core.errors import CheckpointError, ConfigError, ShapeError
from ..core.registry import by_name
from ..gating import RandomSource, Router, expert_readers
from ..gating.gate import keep_pairs, wide_layer
from ..gating.random_source import seeded_by
from ..gating.settings import RouterConfig
from ..routers import RandomRouter
from .capacity import Capacity
from .dialects import DIALECTS
from .experts import ExpertList, Experts, StackedExperts

# in a checkpoint of the MLP that was here, or of its last layer
DENSE = ("weight", *(f"{name}.weight" for dialect in DIALECTS for name in dialect.linears))
MIXES = ("learned", "sum")


class _InPlaceOfMlp(nn.Module):
    """A module that stands where an MLP was, and refuses its weights."""

    def refuse_others(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise CheckpointError if a state dict has weights of the MLP that was here before."""
        if any(f"{prefix}{name}" in state_dict for name in DENSE):
            layer, want = prefix.rstrip(".") or "the mixture", "those of a mixture"
            fix = "Load them into the dense model, then call intarsia.upcycle."
            got = "those of a dense MLP"
            raise CheckpointError(f"weights of {layer!r}", got=got, want=want, fix=fix)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.refuse_others(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore


def _mlps(count: int, width: int | None, generator: torch.Generator) -> Experts:
    """Return MLPs with the hidden size of a transformer's."""
    if width is None:
        got, fix = f"{count} experts of no width", f"For example: Mixture({count}, width=64)."
        raise ConfigError("width", got=got, want="the number of features of a token", fix=fix)
    return StackedExperts(count, width, 4 * width, bias=True, generator=generator)


class Mixture(_InPlaceOfMlp):
    """y_t = sum_e G_te expert_e(x_t) + shared(x_t).  x: (..., d) -> (..., out).

    experts: an `Experts`, a list of modules of whatever kinds, or a number of MLPs d -> 4 d -> d
    with biases and GELU, for which `width` is d; router: which of them, with what weight, for each
    token, or for each sample (its tokens then go together): a router, its settings or its name;
    shared: a module that every token passes; capacity: how many tokens an expert takes, None = all.
    generator: for the random order of `Capacity(policy="random")`, and the MLPs' first weights.

    Rows are sorted by expert, so that time and memory grow with the pairs, never with T times E.
    Exact and differentiable. Padding and dropped tokens get 0 from the experts. Losses stay with
    the router, see `intarsia.gating.aux_loss`. A NaN in a row reaches that row's output alone.
    taken: the newest routing in training after the capacity; `router.last` is the routing before
    the capacity.

    Raises: ConfigError for a router of another number of experts, one that cannot read them
    (`MoeX`), a number of experts without their width, or no generator where one is needed;
    ShapeError for a routing that fits neither tokens nor samples.
    Not for experts that must see whole sequences, such as attention.
    """

    def __init__(
        self,
        experts: Experts | Sequence[nn.Module] | int,
        router: Router | RandomRouter | RouterConfig | str = "topk",
        shared: nn.Module | None = None,
        *,
        width: int | None = None,
        capacity: Capacity | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(experts, int):
            experts = _mlps(experts, width, generator or seeded_by(None))
        self.experts = experts if isinstance(experts, Experts) else ExpertList(experts)
        chooser: Any = router
        if not isinstance(router, nn.Module):
            chooser = self._build_router(router, width, generator)
        if chooser.experts != self.experts.experts:
            got = f"{chooser.experts} experts to choose from"
            want = f"{self.experts.experts}, as the mixture has"
            raise ConfigError("router", got=got, want=want, fix="Give both the same number.")
        if capacity is not None and capacity.policy == "random" and generator is None:
            got, want = "policy='random' without a generator", "a source of random numbers"
            fix = "Pass generator=torch.Generator().manual_seed(0)."
            raise ConfigError("capacity", got=got, want=want, fix=fix)
        for reader in expert_readers(chooser):
            reader.see(self.experts)
        self.router, self.shared, self.capacity = chooser, shared, capacity
        # only the policy "random" draws
        self.draws = (
            RandomSource(generator) if generator is not None and capacity is not None else None
        )
        self.taken: Routing | None = None

    def _build_router(
        self, router: RouterConfig | str, width: int | None, generator: torch.Generator | None
    ) -> Any:
        settings: Any = by_name(router, "router") if isinstance(router, str) else router
        if not isinstance(settings, RouterConfig) or isinstance(settings, type):
            fix = 'Pass "topk", or settings such as intarsia.TopK(active=2).'
            raise ConfigError("router", got=repr(settings), want="a router", fix=fix)
        if is_dataclass(settings) and "experts" in {field.name for field in fields(settings)}:
            settings = replace(settings, experts=self.experts.experts)
        linear = (m.in_features for m in self.experts.modules() if isinstance(m, nn.Linear))
        if width is None and isinstance(self.experts, StackedExperts):
            width = self.experts.up.shape[2]
        if width is None and (width := next(linear, None)) is None:
            fix = "Pass width=, the number of features of a token."
            raise ConfigError("width", got="experts without a linear layer", want="d", fix=fix)
        return settings.build(width, generator=generator or torch.Generator())

    def routing(self, x: Tensor) -> Routing:
        """Route the rows of x, and drop the pairs (token, expert) above the capacity.

        x: (..., d).  -> a routing of all rows, (rows, E).
        """
        routing: Routing = self.router(x)
        # a router may weigh in float32 where the model is half as wide
        routing = spread(replace(routing, weight=routing.weight.to(x.dtype)), x)
        if self.capacity is not None:
            if torch.compiler.is_compiling():  # padding may have pairs, of weight 0
                routing = keep_pairs(routing, routing.weight != 0)
            routing = self.capacity.limit(routing, training=self.training, draws=self.draws)
            if self.training:
                self.taken = routing
        return routing

    def forward(self, x: Tensor) -> Tensor:
        """Compute the weighted sum of the experts' outputs, and add the output of `shared`.

        x: (..., d) -> (..., out).
        """
        rows, routing = x.reshape(-1, x.shape[-1]), self.routing(x)
        # the values of a graph that is traced or exported are not known: take every pair
        no_values = x.is_meta or torch.compiler.is_exporting()
        y = (self.naive if no_values else self.experts.mix)(rows, routing)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.shared is None else y + self.shared(x)

    def naive(self, rows: Tensor, routing: Routing) -> Tensor:
        """Compute sum_e G_te expert_e(x_t) for each row t, with every expert on every row.

        It serves graphs that are traced or exported, in which it is unknown where G is 0.
        rows: x, (T, d); routing: the weights G_te of expert e for row t.  -> (T, out).
        """
        outputs = self.experts.every(rows)
        return torch.einsum("te,teo->to", routing.dense().to(outputs.dtype), outputs)

    def __getstate__(self) -> dict[str, Any]:
        # a routing holds a graph, which cannot be copied
        return self.__dict__ | {"taken": None}


@contextmanager
def undropped(model: nn.Module) -> Iterator[None]:
    """Let no mixture in a model drop tokens inside the `with` block.

    model: its mixtures have no capacity (limit of the tokens of an expert) there, and get theirs
      back afterwards.
    """
    mixtures = [m for m in model.modules() if isinstance(m, Mixture)]
    before = [mixture.capacity for mixture in mixtures]
    for mixture in mixtures:
        # without a capacity every expert takes all tokens that are routed to it
        mixture.capacity = None
    try:
        yield
    finally:
        for mixture, capacity in zip(mixtures, before, strict=True):
            mixture.capacity = capacity


def spread(routing: Routing, x: Tensor) -> Routing:
    """Return a routing of the tokens of x: one of whole samples is repeated for each token.

    routing: of all tokens, or of the B samples; x: (B, ..., d), where tokens are all axes but the
      last. Raises: ShapeError for a routing of another number of tokens.
    """
    rows = x[..., 0].numel()
    if routing.tokens == rows:
        return routing
    if routing.tokens != len(x):
        got, want = f"{routing.tokens} rows for {rows} tokens", "a row for each token or sample"
        raise ShapeError("routing", got=got, want=want, fix="Use a router of tokens.")
    length = rows // len(x)
    # one row of the routing for each sample: repeat it for the sample's tokens
    inside = torch.arange(length, device=routing.token.device)
    return replace(
        routing,
        token=(routing.token[:, None] * length + inside).flatten(),
        expert=routing.expert.repeat_interleave(length),
        weight=routing.weight.repeat_interleave(length),
        tokens=rows,
    )


class ResidualMixture(_InPlaceOfMlp):
    """c_1 mixture(x) + c_2 mlp(x), the residual experts of DeepSpeed-MoE.  (..., d) -> (..., out).

    mix: "learned", (c_1, c_2) = softmax(W x + b) for each token, in float32 or better (released
    code); "sum", both 1 (paper). width: d; W is drawn as nn.Linear's is, b starts at 0.
    The router corrects the MLP for every token, so that one expert next to it does the work of two.

    Raises: ConfigError for another mix.
    Source: arXiv:2201.05596.
    """

    def __init__(
        self,
        mixture: Mixture,
        mlp: nn.Module,
        *,
        width: int,
        mix: str = "learned",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        one_of("mix", mix, MIXES)
        self.mixture, self.mlp = mixture, mlp
        self.coefficient: nn.Linear | None = None
        if mix == "learned":
            self.coefficient = linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, 2))
            bound = width**-0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute c_1 mixture(x) + c_2 mlp(x); c_1 and c_2 are each token's learned weights, or 1.

        x: (..., d) -> (..., out).
        """
        branch, plain = self.mixture(x), self.mlp(x)
        if self.coefficient is None:
            return branch + plain
        # the two weights of each token, which sum to 1
        c = wide_layer(x.reshape(-1, x.shape[-1]), self.coefficient).softmax(-1)
        c = c.to(plain.dtype).view(*x.shape[:-1], 2)
        return c[..., :1] * branch + c[..., 1:] * plain
