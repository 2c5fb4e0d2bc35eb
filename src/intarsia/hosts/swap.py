"""Turn the MLPs of a dense model into mixtures, and give sparse models another router."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, TargetError
from ..mixtures.capacity import Capacity
from ..mixtures.experts import StackedExperts
from ..mixtures.mixture import Mixture
from ..routers import Router, TopK, drawing, join, non_causal, with_experts
from ..routers.permutation import RouterConfig
from .blocks import ATTENTION, blocks, wrapped_paths
from .gates import HostedRouter, hosted, own_gate
from .peft import before_forward
from .sites import select_blocks
from .widen import plain_mlp

HOW = ("copies", "diversified", "slices")
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True)
class Upcycled:
    """What `upcycle` did to a model, kept as its `upcycled`.

    paths: of the MLPs; experts: of each of them.
    """

    router: RouterConfig
    paths: tuple[str, ...]
    experts: tuple[int, ...]
    how: str
    capacity: Capacity | None
    fraction: float
    seed: int


def upcycle(
    model: nn.Module,
    router: RouterConfig = TopK(),  # noqa: B008 - frozen
    *,
    experts: int | Sequence[int] | None = None,
    how: str = "copies",
    layers: Sequence[int] | None = None,
    capacity: Capacity | None = None,
    fraction: float = 0.1,
    seed: int = 0,
    sees_later: bool = False,
) -> nn.Module:
    """Put a `Mixture` in the place of MLPs of a timm ViT or a Llama-shaped decoder, in place.

    router: settings of a router; experts: E in place of the router's own, or one for each layer.
    how: what the experts are,
      "copies" of the MLP (sparse upcycling, arXiv:2212.05055): a router whose weights sum to one
      gives the dense model's output at the start;
      "diversified", copies with `fraction` of each one's weights set to 0 (EvoMoE);
      "slices", E equal parts of its hidden units, which sum to the dense output if all are active
      with weight 1, `TopK(experts=E, active=E, scale="none")`.
    layers: numbers of the blocks, negative ones count from the last; None = all.
    capacity: how many tokens an expert takes.  seed: with each path, of routers and other draws.
    sees_later: acknowledges that in a decoder a router or policy by which a token's experts depend
      on later tokens lets it look ahead.

    In Mixtral, Qwen2-MoE and Qwen3-MoE models the blocks with experts of their own keep them and
    get the router alone; dense layers between them are left.
    Nothing is frozen. `intarsia.fit` adds the routers' losses; `intarsia.save_mixture` saves.

    Raises: TargetError for MLPs of another kind, adapted models and layers that are not there;
    ConfigError for settings that cannot be. The model is then as it was.
    """
    check_plain(model)
    if how not in HOW:
        raise ConfigError("how", got=repr(how), want=f"one of {HOW}", fix="Pick one.")
    chosen = _chosen(model, layers)
    counts = _counts(experts, router, len(chosen))
    if not sees_later:
        _check_causal(chosen, router, capacity)
    paths = tuple(f"{path}.mlp" for path, _ in chosen)
    _put(model, Upcycled(router, paths, counts, how, capacity, fraction, seed), chosen)
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
    if isinstance(model, PeftModel) or wrapped_paths(model):
        raise TargetError(
            "model", got="one with adapters", want="a plain model",
            fix="Call upcycle first, then intarsia.adapt; or merge and unload the adapters.",
        )  # fmt: skip
    if hasattr(model, "upcycled"):
        raise TargetError(
            "model", got="one that was upcycled before", want="a dense model",
            fix="Start from a fresh copy of it.",
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
    join(model)
    for draws in drawing(model).values():
        draws.hold = True
    hooks = (
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_load_state_dict_pre_hook(_refuse_others),
    )
    host: Any = model
    host.upcycled = done
    config = getattr(model, "config", None)
    asked = getattr(config, "output_router_logits", False)
    if asked:  # the host's loss would be of its own gates, which are gone
        cast(Any, config).output_router_logits = False

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        del host.upcycled
        if asked:
            cast(Any, config).output_router_logits = True
        for parent, name, module in old:
            setattr(parent, name, module)

    return undo


def begin(host: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """`before_forward`, as a hook that stays when adapters are taken off again."""
    before_forward(host, args, kwargs)


def _refuse_others(model: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    """Before any weight is overwritten, raise CheckpointError for those of the model as it was."""
    for name, module in model.named_modules():
        if isinstance(module, Mixture | HostedRouter):
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
    if experts is None:
        return (router.experts,) * n
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
    what = None
    if capacity is not None and capacity.policy != "order":
        what = f"Capacity(policy={capacity.policy!r})"
    elif capacity is not None and not _equal_counts(router):
        what = f"Capacity with {type(router).__name__}, whose pairs set its room"
    if non_causal(router):
        what = type(router).__name__
    if what is not None:
        raise ConfigError(
            "routing of a decoder", got=f"{what}, where later tokens have a say",
            want="routing that looks back only",
            fix="Use TopK(...) and Capacity(policy='order'), or say sees_later=True.",
        )  # fmt: skip


def _equal_counts(router: RouterConfig) -> bool:
    built = router.build(1, generator=torch.Generator())
    return isinstance(built, Router) and built.equal_counts


def generator(seed: int, path: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _made(done: Upcycled, i: int, block: nn.Module) -> tuple[str, nn.Module]:
    """What replaces a block's MLP or its gate, and the name of that."""
    path, count, mlp = done.paths[i], done.experts[i], block.get_submodule("mlp")
    draws = generator(done.seed, path)
    config = done.router
    if count != config.experts:
        config = with_experts(config, count)
    if (gate := own_gate(mlp)) is not None:
        if done.how != "copies" or done.capacity is not None:
            raise ConfigError(
                f"{path!r}", got="how or capacity for a block with experts of its own",
                want="a router alone", fix="Leave both out, or choose layers=[...] that are dense.",
            )  # fmt: skip
        own: Any = gate
        new = config.build(own.weight.shape[-1], generator=draws).to(own.weight.device)
        return "gate", hosted(f"{path}.gate", gate, new, count).train(mlp.training)
    dense = dense_mlp(path, mlp)
    made = stacked(dense, count, done.how, path, draws)
    _check_output(mlp, made, done.how, path)
    if done.how == "diversified":
        made.diversify(done.fraction, draws)
    chosen = cast(Router, config.build(dense.up.in_features, generator=draws))
    mixture = Mixture(made, chosen, capacity=done.capacity, generator=draws)
    like = dense.up.weight
    mixture.to(like.device, like.dtype)
    for new, old in zip(made.parameters(), _flags(made, dense), strict=True):
        new.requires_grad_(old)
    return "mlp", mixture.train(mlp.training)


@dataclass(frozen=True)
class Dense:
    """The parts of down(act(up x)), or of down(act(gate x) * up x)."""

    up: nn.Linear
    gate: nn.Linear | None
    down: nn.Linear
    act: nn.Module


def dense_mlp(path: str, module: nn.Module) -> Dense:
    """The parts of an MLP.

    Raises: TargetError for one that computes otherwise, or drops out.
    """
    children: dict[str, Any] = dict(module.named_children())
    found = None
    if children.keys() == GATED:
        found = Dense(*(children[n] for n in ("up_proj", "gate_proj", "down_proj", "act_fn")))
    elif (plain := plain_mlp(module)) is not None:
        found = Dense(cast(Any, plain.fc1), None, cast(Any, plain.fc2), plain.act)
    linears = [] if found is None else [found.up, found.gate, found.down]
    exact = all(m is None or type(m) is nn.Linear for m in linears)
    drops = [m.p for m in module.modules() if isinstance(m, nn.Dropout) and m.p]
    if found is None or not exact or drops:
        raise TargetError(
            f"MLP {path!r}",
            got=f"{type(module).__name__} of {', '.join(children)}"
            + (f", with dropout {drops[0]}" if drops else ""),
            want="fc1, act, fc2 (timm's Mlp) or gate_proj, up_proj, act_fn, down_proj (Llama), "
            "without dropout",
            fix="Choose layers=[...] without it, or set its dropout to 0.",
        )  # fmt: skip
    return found


@torch.no_grad()
def stacked(
    dense: Dense, experts: int, how: str, path: str, draws: torch.Generator
) -> StackedExperts:
    """The experts that an MLP becomes: whole copies, or slices of its hidden units.

    Raises: ConfigError for units that do not divide among the slices.
    """
    (hidden, width), outputs = dense.up.weight.shape, dense.down.out_features
    parts = experts if how == "slices" else 1
    if experts < 1 or hidden % parts:
        raise ConfigError(
            "experts", got=experts, want=f"a divisor of the {hidden} hidden units of {path!r}",
            fix="Slices are of one size; choose another number.",
        )  # fmt: skip
    linears = [m for m in (dense.up, dense.gate, dense.down) if m is not None]
    bias = any(m.bias is not None for m in linears)
    act, gated = copy.deepcopy(dense.act), dense.gate is not None
    made = StackedExperts(
        experts, width, hidden // parts, outputs, act=act, gated=gated, bias=bias, generator=draws
    ).to(dense.up.weight)

    def dealt(matrix: Tensor) -> Tensor:  # (hidden, ...) -> (experts, hidden / parts, ...)
        pieces = matrix.view(parts, hidden // parts, *matrix.shape[1:])
        return pieces.expand(experts, *pieces.shape[1:])

    for name, layer in (("up", dense.up), ("gate", dense.gate)):
        if layer is not None:
            getattr(made, name).copy_(dealt(layer.weight))
            if layer.bias is not None:
                getattr(made, f"{name}_bias").copy_(dealt(layer.bias))
    made.down.copy_(dealt(dense.down.weight.t().contiguous()).transpose(1, 2))
    if dense.down.bias is not None and made.down_bias is not None:
        made.down_bias.copy_(dense.down.bias / parts)  # slices are summed
    return made


def _flags(made: StackedExperts, dense: Dense) -> list[bool]:
    """Which parameters of the experts are trained: those whose matrix was."""
    layers = {"up": dense.up, "gate": dense.gate, "down": dense.down}
    names = [name.removesuffix("_bias") for name, _ in made.named_parameters()]
    return [layer.weight.requires_grad for n in names if (layer := layers[n]) is not None]


@torch.no_grad()
def _check_output(mlp: nn.Module, made: StackedExperts, how: str, path: str) -> None:
    """Raises: TargetError if the MLP's forward is not what its parts say."""
    weight = made.up
    if weight.is_meta:
        return
    x = torch.linspace(-1, 1, 2 * weight.shape[2]).to(weight).view(2, -1)
    every = made.every(x)  # (2, E, out)
    y = every.sum(1) if how == "slices" else every[:, 0]
    close = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(y, mlp(x), rtol=close, atol=close, equal_nan=True):
        raise TargetError(
            f"MLP {path!r}", got=f"a {type(mlp).__name__} with a forward of its own",
            want="down(act(up(x))), or down(act(gate(x)) * up(x))",
            fix="Choose layers=[...] without it.",
        )  # fmt: skip
