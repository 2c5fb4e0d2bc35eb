"""Attention and MLPs of a dense model, cut into experts that sum to them (2503.02495)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ...core import Card, Paper
from ...core.change import Change, Plan, set_steps, steps_of
from ...core.checks import between
from ...core.errors import CheckpointError, ConfigError, FoldError, TargetError
from ...core.linear import plain_linear
from ...core.schema import check, setting
from ...gating import unwatch, watch
from ...gating.context import ReadsContext
from ...hosts.anatomy.blocks import attention_of, blocks
from ...hosts.anatomy.dense_mlp import DenseMlp, check_output, dense_mlp, mlp_place, stack_experts
from ...hosts.anatomy.heads import attention_from, check_heads, heads_of, union_of
from ...hosts.anatomy.sites import select_blocks
from ...mixtures.dialects import DIALECTS
from ...mixtures.experts import StackedExperts
from ...mixtures.union import SharedBias, UnionAttention, UnionMlp
from ...routers.union import GATES, SELECTS, UnionGate
from .upcycle import check_plain, generator

PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class UnionOfExperts(Change):
    """Change of attention and MLP into experts that add up to them, a share of them active.

    y_t = b + sum_e G_te expert_e(x_t): an expert of an MLP is 1 / E of its hidden units, an expert
    of an attention some of its heads; biases behind the sum are added once. If all are active the
    output is the dense one, to the order of sums. For timm's ViTs and decoders of transformers of
    Llama's kind.

    model = apply(model, UnionOfExperts(experts=8, active=4)); fit(model, ...);
    `recompose(model)` is the dense model with the weights of all experts.

    Raises: ConfigError for settings that cannot be, experts that do not divide hidden units or
    heads, and a choice that looks ahead in a decoder; TargetError in `plan` for other blocks.
    Not without training: half of the experts is half of what each block adds.
    Source: arXiv:2503.02495. Unlike the released code, no sample has a say in another's choice.
    """

    experts: int = setting(8, "The number E of an MLP's experts.", least=1, fix="Try 8.")
    active: int = setting(
        4,
        "The number K of active experts; K / E is the share of the work that is done, in the "
        "attention as well.",
        least=1,
        fix="Half of the experts is the paper's.",
    )
    heads: int | None = setting(
        None,
        "The experts of an attention, each of as many heads in a row; None = every head is one.",
        least=1,
    )
    select: str | None = setting(
        None,
        'The choice of experts: "data", each expert takes the ceil(K / E T) positions of a '
        "sequence that suit it best, so that all do equally much (the paper's selective "
        'attention: a head sees its own positions alone); "tokens", each token takes the K '
        "experts that suit it best, the only choice for decoders, where the others would look "
        'ahead, and keys and values of all tokens stay; "experts", a whole sequence '
        'takes K experts, by the mean over its tokens; None = "tokens" in a decoder, "data" '
        "elsewhere.",
        choices=SELECTS,
    )
    gate: str = setting(
        "frozen",
        'The way in which p = softmax(x W) learns: "frozen", not at all, scores choose and the '
        'task has no gradient for them (released code); "sizes", it predicts the logarithm of '
        'the size of each expert\'s output (ours); "straight-through", by the gradient of p; '
        '"score", p multiplies the outputs, times E.',
        choices=GATES,
    )
    warmup: float = setting(
        0.1,
        "The share of the training in which the share of active experts falls from all to K / E.",
        least=0,
        most=1,
    )
    parts: tuple[str, ...] = setting(
        PARTS, "The parts of a block that are split, one or both.", choices=PARTS
    )
    layers: tuple[int, ...] | None = setting(
        None, "The numbers of the blocks, negative ones count from the last; None = all."
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("parts", "layers"):
            if (value := getattr(self, name)) is not None:
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, value)
        check(self)
        between("active", self.active, 1, self.experts, "Half of the experts is the paper's.")
        if not self.parts:
            raise ConfigError("parts", got="none", want=f"some of {PARTS}", fix="Leave it out.")
        self._gate(self.experts)

    @property
    def preserves(self) -> frozenset[str]:
        """Set with "outputs", if all experts are active and their scores do not multiply."""
        exact = self.active == self.experts and self.gate != "score"
        return frozenset({"outputs"} if exact else ())

    def _gate(self, experts: int, always: int = 0) -> UnionGate:
        share, select = self.active / self.experts, self.select or "tokens"
        return UnionGate(experts, share, select, self.gate, always, self.warmup)

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Decide which attentions and MLPs are divided, path -> number of experts.

        Raises: TargetError unless it is a ViT of timm or a decoder of transformers; ConfigError for
        counts that do not divide heads or units.
        """
        check_plain(host)
        check_whole(host)
        # blocks that have both an attention and an MLP
        candidates = [
            (p, b) for p, b in blocks(host) if mlp_place(b) is not None and attention_of(b)
        ]
        if not candidates:
            subject = f"model {type(host).__name__}"
            got, want = "no block of attention and MLP", "a ViT of timm, or a decoder"
            raise TargetError(subject, got=got, want=want, fix="Use upcycle for other models.")
        chosen_paths = select_blocks(candidates, self.layers)
        attention, mlp, causal = dict[str, int](), dict[str, int](), False
        for path, block in ((p, b) for p, b in candidates if p in chosen_paths):
            attention_path = f"{path}.{attention_of(block)}"
            module = host.get_submodule(attention_path)
            causal = causal or any(getattr(m, "is_causal", False) for m in module.modules())
            if "attention" in self.parts:
                # an expert of an attention is a run of heads
                count = heads_of(attention_path, module).count
                attention[attention_path] = count if self.heads is None else self.heads
                check_heads(attention_path, count, attention[attention_path])
            if "mlp" in self.parts:
                mlp_path = f"{path}.{_mlp_name(path, block)}"
                _check_units(
                    mlp_path, dense_mlp(mlp_path, host.get_submodule(mlp_path)), self.experts
                )
                mlp[mlp_path] = self.experts
        # "data" and "experts" compare all tokens of a sequence, later ones included
        select = self.select or ("tokens" if causal else "data")
        if causal and select != "tokens":
            got, want = f"{select!r}, which depends on later tokens", "'tokens'"
            raise ConfigError("select of a decoder", got=got, want=want, fix="Leave select out.")
        # class tokens belong to every expert: without them no output could be read
        always = int(getattr(host, "num_prefix_tokens", 0))
        decided = {"attention": attention, "mlp": mlp, "always": always}
        return Plan(replace(self, select=select), seed, decided)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Replace attentions and MLPs by unions, in place, after all new modules are built."""
        check_plain(host)
        always: int = plan.decided["always"]
        new: dict[str, nn.Module] = {}
        for part in PARTS:
            places: Mapping[str, int] = plan.decided[part]
            for path, count in places.items():
                old, gate = _module_at(host, path), self._gate(count, always)
                # draws depend on the path alone, not on the layers before it
                draws = generator(plan.seed, path)
                make = _attention if part == "attention" else _mlp
                new[path] = make(path, old, gate, draws)
        for path, module in new.items():
            host.set_submodule(path, module)
        watch(host, stays=True)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Return the dense model.  Raises: FoldError unless all experts are computed."""
        if "outputs" not in self.preserves:
            got = f"a union of which {self.active} of {self.experts} experts are active"
            fix = "intarsia.experts.recompose(model) gives the dense model, in which all are."
            raise FoldError("fold", got=got, want="all of them with weight 1", fix=fix)
        return recompose(host)


def recompose(model: nn.Module) -> nn.Module:
    """Return a dense copy of a model that `UnionOfExperts` cut, with its experts' present weights.

    The copy has the host's own modules. Its outputs equal the model's if all experts are
    active; right after the cut it equals the original, bit for bit.
    Raises: TargetError for a model without unions of experts.
    """
    if not any(isinstance(m, UnionAttention | UnionMlp) for m in model.modules()):
        subject, fix = "model", "Call it on what UnionOfExperts has changed."
        raise TargetError(subject, got="one without unions", want="one with", fix=fix)
    stock, steps = copy.deepcopy(model), steps_of(model)
    for path, module in list(stock.named_modules()):
        if isinstance(module, UnionAttention):
            stock.set_submodule(path, attention_from(module))
        elif isinstance(module, UnionMlp):
            stock.set_submodule(path, _mlp_from(module))
    # hooks that pass each batch's context to routers are no longer needed
    if not any(isinstance(m, ReadsContext) for m in stock.modules()):
        unwatch(stock, all=True)
    set_steps(stock, (s for s in steps if not isinstance(s.plan.change, UnionOfExperts)))
    return stock


def check_whole(model: nn.Module) -> None:
    """Check that no attention or MLP was cut into experts before.  Raises: TargetError."""
    if any(isinstance(m, UnionAttention | UnionMlp) for m in model.modules()):
        got, fix = "one that was cut into experts before", "Start from a fresh copy of it."
        raise TargetError("model", got=got, want="a dense model", fix=fix)


def _mlp_name(path: str, block: nn.Module) -> str:
    place = mlp_place(block)
    assert place is not None
    if place.emptied:
        got, fix = "an MLP of two layers of the block's own", "Use a ViT or Llama, or upcycle."
        raise TargetError(f"MLP of {path!r}", got=got, want="one module", fix=fix)
    return place.path


def _check_units(path: str, dense: DenseMlp, experts: int) -> None:
    """Check that `experts` divides the hidden units of an MLP of plain linear layers."""
    linears = [m for m in (dense.up, dense.gate, dense.down) if m is not None]
    if any(m.weight.is_meta and not dense.down.weight.is_meta for m in linears):
        raise TargetError(f"MLP {path!r}", got="Conv1D", want="nn.Linear", fix="Use upcycle.")
    if dense.up.out_features % experts:
        want = f"a divisor of the {dense.up.out_features} hidden units of {path!r}"
        raise ConfigError("experts", got=experts, want=want, fix="Experts are of one size.")


def _module_at(host: nn.Module, path: str) -> nn.Module:
    try:
        return host.get_submodule(path)
    except AttributeError as error:
        got, want = f"a {type(host).__name__} without {path!r}", "the layers that were cut"
        fix = "Create the dense model with the architecture of the training run."
        raise CheckpointError("union of experts", got=got, want=want, fix=fix) from error


def _attention(path: str, old: nn.Module, gate: UnionGate, draws: torch.Generator) -> nn.Module:
    heads = heads_of(path, old)
    check_heads(path, heads.count, gate.experts)
    like = next(old.parameters())
    router = gate.build(heads.width, generator=draws).to(like.device, like.dtype)
    return union_of(path, old, router)


def _mlp(path: str, old: nn.Module, gate: UnionGate, draws: torch.Generator) -> nn.Module:
    """Build the experts of an MLP, their router, and the output bias that is added once."""
    dense, parts = dense_mlp(path, old), gate.experts
    experts = stack_experts(dense, parts, parts, path, draws)
    check_output(old, experts, parts, path)
    experts.down_bias = None  # it is added once, not by each expert that is active
    _copy_flags(experts, dense)
    like = dense.up.weight
    router = gate.build(dense.up.in_features, generator=draws).to(like.device, like.dtype)
    # the old MLP without memory: `recompose` takes activation and names from it
    shell = copy.deepcopy(old).to("meta")
    return UnionMlp(experts, router, dense.down.bias, shell).to(like).train(old.training)


def _copy_flags(experts: StackedExperts, dense: DenseMlp) -> None:
    """Copy `requires_grad` of an MLP's weights and biases to its experts' weights and biases."""
    for name, layer in (("up", dense.up), ("gate", dense.gate), ("down", dense.down)):
        for weight in (getattr(experts, name), getattr(experts, f"{name}_bias")):
            if weight is not None and layer is not None:
                weight.requires_grad_(layer.weight.requires_grad)


@torch.no_grad()
def _mlp_from(union: UnionMlp) -> nn.Module:
    mlp: Any = copy.deepcopy(union.shell[0])
    children = {n for n, m in mlp.named_children() if type(m) is not nn.Identity}
    dialect = next(d for d in DIALECTS if d.fits(children))
    experts = cast(StackedExperts, union.experts)
    # names of the layers that read the input; some hosts keep gate over up in one layer
    *gates, up = dialect.reads
    kinds = (
        {up: ("gate", "up")} if dialect.halves else {up: ("up",), **{g: ("gate",) for g in gates}}
    )
    for name, parts in kinds.items():
        # hidden units of all experts, in the order in which they were dealt out
        weight = torch.cat([getattr(experts, part).flatten(0, 1) for part in parts])
        bias = None
        if mlp.get_submodule(name).bias is not None:
            bias = torch.cat([getattr(experts, f"{part}_bias").flatten() for part in parts])
        layer = plain_linear(weight, bias)
        layer.requires_grad_(getattr(experts, parts[0]).requires_grad)
        mlp.set_submodule(name, layer)
    last = union.shared.bias if isinstance(union.shared, SharedBias) else None
    # `down` reads the hidden units: its slices are columns
    layer = plain_linear(experts.down.transpose(0, 1).flatten(1), last)
    mlp.set_submodule(dialect.writes, layer.requires_grad_(experts.down.requires_grad))
    return mlp.train(union.training)


CARD = Card(
    "union_of_experts",
    kind="change",
    config=UnionOfExperts,
    paper=Paper(
        "2503.02495",
        2025,
        "Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed Transformer",
    ),
    tiny={"experts": 4, "active": 2},
    summary="Attention and MLPs of a dense model as experts that add up to them, a share active.",
    family="experts",
)
