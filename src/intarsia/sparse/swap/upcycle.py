"""Turn the MLPs of a dense model into mixtures, and give sparse models another router."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel
from torch import nn

from ...core import Card, Paper
from ...core.change import Change, Plan, Step, set_steps, steps_of
from ...core.errors import CheckpointError, ConfigError, FoldError, TargetError
from ...core.foreign import config_of
from ...core.schema import check, setting
from ...gating import PassesState, Router, RouterConfig, non_causal, watch, with_experts
from ...hosts.anatomy.blocks import attention_of, blocks, wrapped_paths
from ...hosts.anatomy.dense_mlp import (
    DenseMlp,
    MlpPlace,
    check_output,
    dense_mlp,
    draw_experts,
    mlp_place,
    stack_experts,
)
from ...hosts.anatomy.gates import HostedRouter, followed, gate_name, hosted, own_gate, read_gate
from ...hosts.anatomy.sites import check_one_row, select_blocks
from ...mixtures.capacity import LOOKS_AHEAD, Capacity
from ...mixtures.experts import StackedExperts, activation
from ...mixtures.mixture import MIXES, Mixture, ResidualMixture
from ...mixtures.residual import Residual
from ...routers import TopK

CAUSAL = ("is_causal", "is_decoder")  # attributes by which attentions say that they are causal
HOW = ("copies", "diversified", "slices", "fresh")


@dataclass(frozen=True)
class Upcycle(Change):
    """Change that puts a `Mixture` in the place of MLPs: timm's ViTs, Llama, BERT, GPT-2, T5.

    In sparse models (Mixtral, Qwen-MoE, OLMoE, DeepSeek-V2, GPT-OSS) the blocks with experts of
    their own keep them and get the router alone; dense layers between them are left. `TopK()` is
    then what the host's own gate does, and `TopK(...)` without a scale weighs as that gate does.
    Nothing is frozen.

    Not for models with adapters, nor to save time with copies: each active one costs what the
    MLP did.
    Raises: ConfigError for settings that cannot be; TargetError in `plan` for MLPs of another kind,
    adapted models and layers that are not there.
    """

    router: RouterConfig = setting(TopK(), "The settings of the router that chooses experts.")
    experts: int | tuple[int, ...] | None = setting(
        None,
        "The number E of experts instead of the router's own, or one for each layer, in the "
        "order of the model; None = the router's.",
        least=1,
    )
    how: str = setting(
        "copies",
        'The first experts: "copies" of the MLP (sparse upcycling, arXiv:2212.05055), with '
        "which a router of weights that sum to one gives the dense model's output at the start; "
        '"diversified", copies with `fraction` of each one\'s weights set to 0 (EvoMoE); '
        '"slices", E equal parts of its hidden units, which sum to the dense output if all are '
        'active with weight 1, `TopK(experts=E, active=E, scale="none")`; "fresh", each drawn '
        "for itself, as a model that is trained from scratch has them: the MLP's own weights "
        "are forgotten.",
        choices=HOW,
    )
    layers: tuple[int, ...] | None = setting(
        None, "The numbers of the blocks, negative ones count from the last; None = all."
    )
    capacity: Capacity | None = setting(
        None, "The tokens that an expert takes, a `Capacity`; None = all."
    )
    residual: str | None = setting(
        None,
        "The MLP that stays next to the experts, for every token (Residual-MoE, "
        'arXiv:2201.05596): "learned", weighed by a softmax for each token, or "sum", see '
        "`ResidualMixture`; None = none stays.",
        choices=MIXES,
    )
    fraction: float = setting(
        0.1, 'The share of a copy\'s weights that "diversified" sets to 0.', least=0, below=1
    )
    act: str | None = setting(
        None,
        "The experts' activation instead of the MLP's, on the gate's path if they are gated; "
        'the output is then not the dense one. `MoeX` wants "relu". None = the MLP\'s own.',
        choices=("gelu", "relu", "silu"),
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Convert settings that come from a file, and check them.  Raises: ConfigError."""
        check(self)
        for name in ("experts", "layers"):
            if isinstance(value := getattr(self, name), Sequence):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.capacity, Mapping):
            object.__setattr__(self, "capacity", Capacity(**self.capacity))
        if not isinstance(self.router, RouterConfig):
            got = f"{type(self.router).__name__}, which routes no tokens to experts"
            fix = "Use TopK(), or adapt(model, Poly(...))."
            raise ConfigError("router", got=got, want="a router of tokens", fix=fix)

    @property
    def preserves(self) -> frozenset[str]:
        """Set with "outputs" if experts are copies, with room for all, and gates sum to one."""
        changed = (self.capacity, self.residual, self.act) != (None, None, None)
        # built only to ask it whether the weights of a token sum to one
        router = self.router.build(1, generator=torch.Generator())
        normalised = isinstance(router, Router) and router.normalised
        exact = self.how == "copies" and not changed and normalised
        return frozenset({"outputs"} if exact else ())

    def plan(
        self,
        host: nn.Module,
        batches: Iterable[Any] = (),
        *,
        seed: int = 0,
        sees_later: bool = False,
    ) -> Plan:
        """Decide which MLPs become mixtures, and how many experts each has.

        sees_later: allow, in a decoder, a router or capacity policy by which a token's experts
        depend on later tokens.
        Raises: TargetError for a model that was changed before; ConfigError for settings that do
        not fit.
        """
        check_plain(host)
        chosen_blocks = _chosen_blocks(host, self.layers)
        # settings that the router leaves open are taken from the model's gates, and recorded
        router = _as_gates(chosen_blocks, self.router)
        counts = _counts(self.experts, router, len(chosen_blocks))
        if not sees_later:
            _check_causal(chosen_blocks, router, self.capacity)
        if passes_state(router):
            check_one_row((path for path, _ in chosen_blocks), type(router).__name__)
        # slices divide the hidden units of an MLP; other experts have all of them
        parts = counts if self.how == "slices" else (1,) * len(counts)
        paths = tuple(f"{path}.{_place(block).path}" for path, block in chosen_blocks)
        return Plan(replace(self, router=router), seed, asdict(MixturePlaces(paths, counts, parts)))

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Replace the MLPs, in place; everything is built before anything is replaced."""
        check_plain(host)
        _build_mixtures(host, self, MixturePlaces(**plan.decided), plan.seed)
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Refuse: no plain layer chooses among experts.  Raises: FoldError."""
        got = "mixtures, whose router chooses experts for each token"
        fix = "Keep the mixtures: save the model with intarsia.save."
        want = "a change of weights, or units of an MLP"
        raise FoldError(f"fold {type(host).__name__}", got=got, want=want, fix=fix)


@dataclass(frozen=True)
class MixturePlaces:
    """Places of the mixtures that `upcycle` put into a model.

    paths: of the MLPs that were replaced; experts: number of experts that each mixture has now;
    parts: number of slices into which the hidden units of each MLP were divided, 1 = its experts
    are whole copies.
    """

    paths: tuple[str, ...]
    experts: tuple[int, ...]
    parts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Turn lists into tuples, and check that there are numbers for each path."""
        for name in ("paths", "experts", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lengths = {len(self.paths), len(self.experts), len(self.parts)}
        if len(lengths) > 1 or min((*self.experts, *self.parts), default=1) < 1:
            got = f"{len(self.paths)} paths, experts {self.experts}, parts {self.parts}"
            want = "a number of experts and of parts for each path"
            raise ConfigError("mixtures", got=got, want=want, fix="Take them from Upcycle.plan.")


def upcycle_step(model: nn.Module) -> Step | None:
    """Return the step that put mixtures into a model, or None."""
    return next((s for s in steps_of(model) if isinstance(s.plan.change, Upcycle)), None)


def places_in(model: nn.Module) -> MixturePlaces | None:
    """Return the mixtures that `upcycle` put into a model, or None."""
    return None if (step := upcycle_step(model)) is None else MixturePlaces(**step.plan.decided)


def move_places(model: nn.Module, places: MixturePlaces, *, elsewhere: bool = False) -> None:
    """Record new places of a model's mixtures, after they were moved or removed.

    places: the mixtures there are now; none = the model counts as never upcycled; elsewhere: the
    dense model has changed, too, so that the recorded fingerprint of it no longer holds.
    """
    # without mixtures the step is removed, and the model counts as a dense one
    old = upcycle_step(model)
    new = None
    if old is not None and places.paths:
        plan = replace(old.plan, decided=asdict(places))
        new = replace(old, plan=plan, on={} if elsewhere else old.on)
    steps = (new if step is old else step for step in steps_of(model))
    set_steps(model, (step for step in steps if step is not None))


def check_plain(model: nn.Module) -> None:
    """Check that a model has no adapters, no mixtures of `upcycle` and no momentum around MLPs.

    Raises: TargetError.
    """
    check_unadapted(model)
    if any(isinstance(module, Residual) for module in model.modules()):
        got, fix = "one with momentum around its MLPs", "Upcycle first, then call add_momentum."
        raise TargetError("model", got=got, want="one without", fix=fix)
    if upcycle_step(model) is not None:
        got, fix = "one that was upcycled before", "Start from a fresh copy of it."
        raise TargetError("model", got=got, want="a dense model", fix=fix)


def check_unadapted(model: nn.Module) -> None:
    """Check that a model has no adapters.  Raises: TargetError."""
    if isinstance(model, PeftModel) or wrapped_paths(model):
        fix = "Do this first, then intarsia.adapt; or merge and unload the adapters."
        raise TargetError("model", got="one with adapters", want="a plain model", fix=fix)


def _build_mixtures(model: nn.Module, change: Upcycle, places: MixturePlaces, seed: int) -> None:
    """Build all mixtures of a plan, replace the MLPs by them, and register the hooks they need."""
    mlp_places = _mlps(model)
    if missing := [path for path in places.paths if path not in mlp_places]:
        got = f"a {type(model).__name__} without {missing[0]!r}"
        want = f"the {len(places.paths)} MLPs that were mixtures"
        fix = "Create the dense model with the architecture of the training run."
        raise CheckpointError("mixture", got=got, want=want, fix=fix)
    # all are built first: an error in the last block must leave the first one unchanged
    mlps = (mlp_places[path][1].mlp for path in places.paths)
    new = [_build(change, places, i, mlp, seed) for i, mlp in enumerate(mlps)]
    for path, (name, module) in zip(places.paths, new, strict=True):
        block, place = mlp_places[path]
        # BERT's MLP is two layers of the block: the first becomes the mixture, the second nothing
        for emptied in place.emptied:
            _replace_module(block, emptied, nn.Identity())
        _replace_module(block, f"{place.path}.{name}".rstrip("."), module)
    watch(model, stays=True)
    # a checkpoint of the dense model would load without an error, and lose its MLPs
    model.register_load_state_dict_pre_hook(_refuse_others)
    config: Any = config_of(model)
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False  # the model's own loss of its gates, which are gone


def _refuse_others(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    """Refuse weights of the model as it was before upcycling, before any weight is overwritten."""
    for name, module in model.named_modules():
        if isinstance(module, Mixture | ResidualMixture | HostedRouter):
            module.refuse_others(state_dict, f"{prefix}{name}.")


def _chosen_blocks(model: nn.Module, layers: Sequence[int] | None) -> list[tuple[str, nn.Module]]:
    candidates = [(p, b) for p, b in blocks(model) if mlp_place(b) is not None]
    if not candidates:
        subject = f"model {type(model).__name__}"
        got, want = "no block with an MLP", "a transformer of timm or transformers"
        raise TargetError(subject, got=got, want=want, fix="Put intarsia's Mixture in by hand.")
    paths = select_blocks(candidates, layers)
    named_blocks = [(p, b) for p, b in candidates if p in paths]
    # in a sparse model the dense blocks between are left, unless they were named
    sparse = [(p, b) for p, b in named_blocks if own_gate(_place(b).mlp) is not None]
    return sparse if sparse and layers is None else named_blocks


def _place(block: nn.Module) -> MlpPlace:
    place = mlp_place(block)
    assert place is not None
    return place


def _mlps(model: nn.Module) -> dict[str, tuple[nn.Module, MlpPlace]]:
    """Return the path of each MLP -> the block that contains it, and its place there."""
    places = ((p, b, mlp_place(b)) for p, b in blocks(model))
    return {f"{p}.{place.path}": (b, place) for p, b, place in places if place is not None}


def _replace_module(block: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(block.get_submodule(owner), name, module)


def _as_gates(chosen_blocks: Sequence[tuple[str, nn.Module]], router: RouterConfig) -> RouterConfig:
    """Fill in settings that a router leaves open with the settings of the host's own gates."""
    mlps = [(f"{path}.{(place := _place(block)).path}", place.mlp) for path, block in chosen_blocks]
    gates = [(p, gate) for p, mlp in mlps if (gate := own_gate(mlp)) is not None]
    if not gates:
        return router
    return followed(router, [read_gate(*path_and_gate) for path_and_gate in gates], gates[0][0])


def passes_state(router: RouterConfig) -> bool:
    """Return True if each layer's router reads the state that the layer before left."""
    built = router.build(1, generator=torch.Generator())
    return any(isinstance(m, PassesState) for m in built.modules())


def _counts(experts: int | Sequence[int] | None, router: RouterConfig, n: int) -> tuple[int, ...]:
    experts = int(router.experts) if experts is None else experts
    if isinstance(experts, int):
        return (experts,) * n
    if len(experts) != n:
        got, fix = f"{len(experts)} numbers", "Give one number for all, or choose layers=[...]."
        raise ConfigError("experts", got=got, want=f"{n}, one for each layer", fix=fix)
    return tuple(experts)


def _check_causal(
    chosen_blocks: Sequence[tuple[str, nn.Module]], router: RouterConfig, capacity: Capacity | None
) -> None:
    """Check that no token of a decoder is routed depending on later ones."""
    attentions = (block.get_submodule(attention_of(block) or "") for _, block in chosen_blocks)
    # a decoder is known by the flags of its attentions
    flags = (getattr(m, name, None) for a in attentions for m in a.modules() for name in CAUSAL)
    if not any(flag is True for flag in flags):
        return
    if (culprit := looks_ahead(router, capacity)) is not None:
        got, want = f"{culprit}, which depends on later tokens", "routing that looks back only"
        fix = "Use TopK(...) and Capacity(policy='order'), or say sees_later=True."
        raise ConfigError("routing of a decoder", got=got, want=want, fix=fix)


def looks_ahead(router: RouterConfig, capacity: Capacity | None = None) -> str | None:
    """Name the router or capacity policy by which later tokens affect earlier ones, or None."""
    if non_causal(router):
        return type(router).__name__
    if capacity is None:
        return None
    if capacity.policy in LOOKS_AHEAD:
        return f"Capacity(policy={capacity.policy!r})"
    built = router.build(1, generator=torch.Generator())
    if isinstance(built, Router) and built.equal_counts:
        return None
    return f"Capacity with {type(router).__name__}, whose pairs set its room"


def generator(seed: int, path: str) -> torch.Generator:
    """Return a random generator of its own for a seed and a path."""
    # a layer's draws depend on its path alone, not on the layers that were built before it
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _build(
    change: Upcycle, places: MixturePlaces, i: int, mlp: nn.Module, seed: int
) -> tuple[str, nn.Module]:
    """Build the module that replaces one MLP: a mixture, or a router for a sparse block's gate."""
    path, count, parts = places.paths[i], places.experts[i], places.parts[i]
    draws = generator(seed, path)
    config = change.router
    config = config if count == config.experts else with_experts(config, count)
    if (gate := own_gate(mlp)) is not None:
        settings = change.how, change.capacity, change.residual, change.act
        if settings != ("copies", None, None, None):
            got = "how, capacity, residual or act for a block with experts of its own"
            fix = "Leave them out, or choose layers=[...] that are dense."
            raise ConfigError(f"{path!r}", got=got, want="a router alone", fix=fix)
        host_gate: Any = gate
        # a block with experts of its own keeps them, and gets a router instead of its gate
        new = config.build(host_gate.weight.shape[-1], generator=draws).to(host_gate.weight.device)
        name = gate_name(mlp) or ""
        return name, hosted(f"{path}.{name}", gate, new, count).train(mlp.training)
    dense = dense_mlp(path, mlp)
    experts = draw_experts(dense, count, parts, path, draws) if change.how == "fresh" else None
    # the parts must compute what the MLP computes; of fresh experts a copy is compared
    like_mlp = stack_experts(dense, count if experts is None else 1, parts, path, draws)
    check_output(mlp, like_mlp, parts, path)
    experts = experts or like_mlp
    if change.act is not None:
        experts.act = activation(change.act)
    if change.how == "diversified":
        experts.diversify(change.fraction, draws)
    router = cast(Router, config.build(dense.up.in_features, generator=draws))
    mixture = Mixture(experts, router, capacity=change.capacity, generator=draws)
    # frozen weights of the MLP stay frozen in its experts
    for new, old in zip(experts.parameters(), _trained_flags(experts, dense), strict=True):
        new.requires_grad_(old)
    result: nn.Module = mixture
    # Residual-MoE: the MLP stays next to the mixture, for every token
    if change.residual is not None:
        width, mix = dense.up.in_features, change.residual
        result = ResidualMixture(mixture, mlp, width=width, mix=mix, generator=draws)
    return "", result.to(dense.up.weight.device, dense.up.weight.dtype).train(mlp.training)


def _trained_flags(experts: StackedExperts, dense: DenseMlp) -> list[bool]:
    """Return `requires_grad` for each parameter of the experts: the MLP's own matrix decides."""
    layers = {"up": dense.up, "gate": dense.gate, "down": dense.down}
    names = [name.removesuffix("_bias") for name, _ in experts.named_parameters()]
    return [layer.weight.requires_grad for n in names if (layer := layers[n]) is not None]


CARDS = (
    Card(
        "upcycle",
        kind="change",
        config=Upcycle,
        paper=Paper(
            "2212.05055",
            2022,
            "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
        ),
        tiny={"router": TopK(experts=2)},
        summary="Mixtures of experts in the place of a dense model's MLPs.",
        family="experts",
        names=("sparse upcycling",),
    ),
)
