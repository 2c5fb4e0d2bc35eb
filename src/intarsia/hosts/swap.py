"""Turn the MLPs of a dense model into mixtures, and give sparse models another router."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from ..core.errors import CheckpointError, ConfigError, TargetError
from ..gating import Router, RouterConfig, non_causal, watch, with_experts
from ..mixtures.capacity import LOOKS_AHEAD, Capacity
from ..mixtures.experts import StackedExperts, activation
from ..mixtures.mixture import MIXES, Mixture, ResidualMixture
from ..routers import TopK
from .blocks import ATTENTION, blocks, wrapped_paths
from .dense_mlp import Dense, check_output, dense_mlp, drawn, stacked
from .gates import HostedRouter, hosted, own_gate
from .sites import select_blocks

HOW = ("copies", "diversified", "slices", "fresh")


@dataclass(frozen=True)
class UpcycleSettings:
    """What `upcycle` was told, but for the layers and their numbers of experts.

    act: of the experts, None = the MLP's.
    """

    router: RouterConfig
    how: str
    capacity: Capacity | None
    residual: str | None
    fraction: float
    seed: int
    act: str | None = None


@dataclass(frozen=True)
class Upcycled:
    """The mixtures that stand in a model, kept as its `upcycled`.

    paths: of the MLPs that were there; experts: how many each mixture has by now; parts: in how
    many parts the hidden units of each MLP were dealt out, 1 = its experts are whole copies.
    """

    told: UpcycleSettings
    paths: tuple[str, ...]
    experts: tuple[int, ...]
    parts: tuple[int, ...]


def upcycle(
    model: nn.Module,
    router: RouterConfig = TopK(),  # noqa: B008 - frozen
    *,
    experts: int | Sequence[int] | None = None,
    how: str = "copies",
    layers: Sequence[int] | None = None,
    capacity: Capacity | None = None,
    residual: str | None = None,
    fraction: float = 0.1,
    act: str | None = None,
    seed: int = 0,
    sees_later: bool = False,
) -> nn.Module:
    """Put a `Mixture` in the place of MLPs of a timm ViT or a Llama-shaped decoder, in place.

    router: settings of a router; experts: E in place of the router's own, or one for each layer, in
    the order of the model.
    how: what the experts are,
      "copies" of the MLP (sparse upcycling, arXiv:2212.05055): a router whose weights sum to one
      gives the dense model's output at the start;
      "diversified", copies with `fraction` of each one's weights set to 0 (EvoMoE);
      "slices", E equal parts of its hidden units, which sum to the dense output if all are active
      with weight 1, `TopK(experts=E, active=E, scale="none")`;
      "fresh", drawn anew, each for itself, as a model that is trained from scratch has them: the
      MLP's own weights are forgotten.
    act: the experts' activation in place of the MLP's, "gelu", "relu" or "silu", on the gate's
    path if they are gated; the output is then not the dense one. `MoeX` wants "relu".
    layers: numbers of the blocks, negative ones count from the last; None = all.
    capacity: how many tokens an expert takes.  seed: with each path, of routers and other draws.
    residual: keep the MLP beside the experts, for every token (Residual-MoE, arXiv:2201.05596):
      "learned", weighed by a softmax for each token, or "sum", see `ResidualMixture`.
    sees_later: acknowledges that in a decoder a router or policy by which a token's experts depend
      on later tokens lets it look ahead.

    In Mixtral, Qwen2-MoE and Qwen3-MoE models the blocks with experts of their own keep them and
    get the router alone; dense layers between them are left.
    Nothing is frozen. `intarsia.fit` adds the routers' losses; `intarsia.save_mixture` saves.

    Raises: TargetError for MLPs of another kind, adapted models and layers that are not there;
    ConfigError for settings that cannot be. The model is then as it was.
    """
    check_plain(model)
    if residual is not None and residual not in MIXES:
        raise ConfigError(
            "residual", got=repr(residual), want=f"None or one of {MIXES}", fix="Pick one."
        )
    if how not in HOW:
        raise ConfigError("how", got=repr(how), want=f"one of {HOW}", fix="Pick one.")
    chosen = _chosen(model, layers)
    counts = _counts(experts, router, len(chosen))
    if not sees_later:
        _check_causal(chosen, router, capacity)
    told = UpcycleSettings(router, how, capacity, residual, fraction, seed, act)
    paths = tuple(f"{path}.mlp" for path, _ in chosen)
    parts = counts if how == "slices" else (1,) * len(counts)
    _put(model, Upcycled(told, paths, counts, parts), chosen)
    return model


def restored(model: nn.Module, done: Upcycled, check: Callable[[], None]) -> None:
    """Do to a dense model what was done to another; undone if `check` then raises.

    Raises: CheckpointError for a model without those places; TargetError for one upcycled before.
    """
    check_plain(model)
    found = {f"{path}.mlp": (path, block) for path, block in blocks(model)}
    if missing := [path for path in done.paths if path not in found]:
        raise CheckpointError(
            "mixture", got=f"a {type(model).__name__} without {missing[0]!r}",
            want=f"the {len(done.paths)} MLPs that were mixtures",
            fix="Create the dense model with the architecture of the training run.",
        )  # fmt: skip
    undo = _put(model, done, [found[path] for path in done.paths])
    try:
        check()
    except BaseException:
        undo()
        raise


def check_plain(model: nn.Module) -> None:
    """Raises: TargetError for a model with adapters or mixtures."""
    check_unadapted(model)
    if hasattr(model, "upcycled"):
        raise TargetError(
            "model", got="one that was upcycled before", want="a dense model",
            fix="Start from a fresh copy of it.",
        )  # fmt: skip


def check_unadapted(model: nn.Module) -> None:
    """Raises: TargetError for a model with adapters."""
    if isinstance(model, PeftModel) or wrapped_paths(model):
        raise TargetError(
            "model", got="one with adapters", want="a plain model",
            fix="Do this first, then intarsia.adapt; or merge and unload the adapters.",
        )  # fmt: skip


def _put(
    model: nn.Module, done: Upcycled, chosen: Sequence[tuple[str, nn.Module]]
) -> Callable[[], None]:
    """Build everything, then put it in place, watched by a hook; returns what undoes it."""
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for i, (_, block) in enumerate(chosen):
        name, new = _made(done, i, block)
        places.append((block if name == "mlp" else block.get_submodule("mlp"), name, new))
    old = [(parent, name, getattr(parent, name)) for parent, name, _ in places]
    for parent, name, new in places:
        setattr(parent, name, new)
    unhook = watch(model, stays=True)
    refuse = model.register_load_state_dict_pre_hook(_refuse_others)
    host: Any = model
    host.upcycled = done
    config = getattr(model, "config", None)
    asked = getattr(config, "output_router_logits", False)
    if asked:  # the host's loss would be of its own gates, which are gone
        cast(Any, config).output_router_logits = False

    def undo() -> None:
        unhook()
        refuse.remove()
        del host.upcycled
        if asked:
            cast(Any, config).output_router_logits = True
        for parent, name, module in old:
            setattr(parent, name, module)

    return undo


def _refuse_others(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    """Before any weight is overwritten, raise CheckpointError for those of the model as it was."""
    for name, module in model.named_modules():
        if isinstance(module, Mixture | ResidualMixture | HostedRouter):
            module.refuse_others(state_dict, f"{prefix}{name}.")


def _chosen(model: nn.Module, layers: Sequence[int] | None) -> list[tuple[str, nn.Module]]:
    """The blocks to change, by path."""
    found = [(p, b) for p, b in blocks(model) if "mlp" in dict(b.named_children())]
    if not found:
        raise TargetError(
            f"model {type(model).__name__}", got="no block with an MLP of its own",
            want="a timm ViT or a Llama-shaped decoder", fix="Put intarsia's Mixture in by hand.",
        )  # fmt: skip
    wanted = select_blocks(found, layers)
    chosen = [(p, b) for p, b in found if p in wanted]
    sparse = [(p, b) for p, b in chosen if own_gate(b.get_submodule("mlp")) is not None]
    return sparse if sparse and layers is None else chosen


def _counts(experts: int | Sequence[int] | None, router: RouterConfig, n: int) -> tuple[int, ...]:
    own: int | None = getattr(router, "experts", None)
    if own is None:
        raise ConfigError(
            "router", got=f"{type(router).__name__}, which routes by task, not by token",
            want="a router of tokens", fix="Use TopK(), or adapt(model, Poly(...)).",
        )  # fmt: skip
    if experts is None:
        return (own,) * n
    if isinstance(experts, int):
        return (experts,) * n
    if len(experts) != n:
        raise ConfigError(
            "experts", got=f"{len(experts)} numbers", want=f"{n}, one for each layer",
            fix="Give one number for all, or choose layers=[...].",
        )  # fmt: skip
    return tuple(experts)


def _check_causal(
    chosen: Sequence[tuple[str, nn.Module]], router: RouterConfig, capacity: Capacity | None
) -> None:
    """Raises: ConfigError where a decoder's tokens would be routed by later ones."""
    attentions = [getattr(block, name, None) for _, block in chosen for name in ATTENTION]
    if not any(getattr(attention, "is_causal", False) is True for attention in attentions):
        return
    if (what := looks_ahead(router, capacity)) is not None:
        raise ConfigError(
            "routing of a decoder", got=f"{what}, where later tokens have a say",
            want="routing that looks back only",
            fix="Use TopK(...) and Capacity(policy='order'), or say sees_later=True.",
        )  # fmt: skip


def looks_ahead(router: RouterConfig, capacity: Capacity | None = None) -> str | None:
    """What gives later tokens a say in where earlier ones go, if anything does."""
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
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _made(done: Upcycled, i: int, block: nn.Module) -> tuple[str, nn.Module]:
    """What replaces a block's MLP or its gate, and the name of that."""
    path, count, mlp = done.paths[i], done.experts[i], block.get_submodule("mlp")
    told, draws = done.told, generator(done.told.seed, path)
    config = told.router
    if count != config.experts:
        config = with_experts(config, count)
    if (gate := own_gate(mlp)) is not None:
        if (told.how, told.capacity, told.residual, told.act) != ("copies", None, None, None):
            raise ConfigError(
                f"{path!r}",
                got="how, capacity, residual or act for a block with experts of its own",
                want="a router alone", fix="Leave them out, or choose layers=[...] that are dense.",
            )  # fmt: skip
        own: Any = gate
        new = config.build(own.weight.shape[-1], generator=draws).to(own.weight.device)
        return "gate", hosted(f"{path}.gate", gate, new, count).train(mlp.training)
    dense = dense_mlp(path, mlp)
    parts = done.parts[i]
    made = drawn(dense, count, parts, path, draws) if told.how == "fresh" else None
    of_mlp = stacked(dense, count if made is None else 1, parts, path, draws)
    check_output(mlp, of_mlp, parts, path)
    made = made or of_mlp
    if told.act is not None:
        made.act = activation(told.act)
    if told.how == "diversified":
        made.diversify(told.fraction, draws)
    chosen = cast(Router, config.build(dense.up.in_features, generator=draws))
    mixture = Mixture(made, chosen, capacity=told.capacity, generator=draws)
    for new, old in zip(made.parameters(), _flags(made, dense), strict=True):
        new.requires_grad_(old)
    whole: nn.Module = mixture
    if told.residual is not None:
        width = dense.up.in_features
        whole = ResidualMixture(mixture, mlp, width=width, mix=told.residual, generator=draws)
    like = dense.up.weight
    return "mlp", whole.to(like.device, like.dtype).train(mlp.training)


def _flags(made: StackedExperts, dense: Dense) -> list[bool]:
    """Which parameters of the experts are trained: those whose matrix was."""
    layers = {"up": dense.up, "gate": dense.gate, "down": dense.down}
    names = [name.removesuffix("_bias") for name, _ in made.named_parameters()]
    return [layer.weight.requires_grad for n in names if (layer := layers[n]) is not None]
