"""Experts out of a dense language model, by which hidden units each kind of text uses (Read-ME).

arXiv:2410.19123, section 3: masks of channels, the mixture, and the pre-gate's targets. Batching
by expert is in `placement.batching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import PlainChange, Plan
from ..core.checks import above, at_least, between
from ..core.errors import ConfigError, DataError, ShapeError, TargetError
from ..core.modes import evaluating
from ..gating import watch
from ..mixtures.read_me import read_me_mixture
from ..routers.pregate import PreGate, PreGateNet, PreGateRouter
from .anatomy.blocks import blocks
from .anatomy.dense_mlp import DenseMlp, dense_mlp, mlp_place
from .swap.upcycle import check_unadapted

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the channels, that count as hits
SHARP, SMOOTHING, SOFT = 10.0, 0.5, 0.25  # released code
Batch = Mapping[str, Tensor]
Masks = Mapping[str, Tensor]  # path of the MLP -> (E, h) bool
Report = Callable[[str], None]


@dataclass(frozen=True)
class ReadMe(PlainChange):
    """Experts as parts of the dense model's MLPs, chosen by a pre-gate over token ids.

    density: the share of hidden units that an expert has, residual included; width, heads: of the
    gate. `extract(model, domains)` does it: texts of several kinds are no settings.

    Raises: ConfigError for settings that cannot be, and in `apply`.
    Not for models without token ids.
    Source: arXiv:2410.19123.
    """

    density: float = 0.5
    width: int = 64
    heads: int = 4

    recorded: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        above("density", self.density, 0, "Try 0.5.")
        between("density", self.density, 0, 1, "Try 0.5.")
        PreGate(width=self.width, heads=self.heads)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        want, fix = "texts of several kinds", "Call intarsia.extract(model, domains)."
        raise ConfigError("domains", got="none", want=want, fix=fix)


def mlps(model: nn.Module) -> dict[str, DenseMlp]:
    """The MLPs of a dense model by path.  Raises: TargetError for a model without."""
    check_unadapted(model)
    found: dict[str, DenseMlp] = {}
    for path, block in blocks(model):
        place = mlp_place(block)
        if place is None or place.emptied:
            got, fix = f"a {type(block).__name__} at {path!r}", "Use Llama, Qwen or the like."
            raise TargetError("model to extract from", got=got, want="an MLP of its own", fix=fix)
        found[f"{path}.{place.path}"] = dense_mlp(path, place.mlp)
    if not found:
        got, fix = f"a {type(model).__name__} without blocks", "Use Llama, Qwen or the like."
        raise TargetError("model to extract from", got=got, want="a language model", fix=fix)
    return found


@torch.no_grad()
def channel_use(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean |input of the last layer| of every MLP's hidden units.  Path -> (h,) float64.

    Padding does not count.  Raises: DataError for no tokens.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        mask = batch.get("attention_mask")
        with evaluating(model), _hidden(model) as seen:
            model(**batch)
        keep = None if mask is None else mask.flatten().bool()
        for path, h in seen.items():
            rows = h.flatten(0, -2) if keep is None else h.flatten(0, -2)[keep]
            total[path] = total.get(path, 0) + rows.double().abs().sum(0)
        count += batch["input_ids"].numel() if keep is None else int(keep.sum())
    if not count:
        raise DataError("text of a domain", got="no tokens", want="some", fix="Give a few rows.")
    return {path: use / count for path, use in total.items()}


@contextmanager
def _hidden(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, the newest hidden units (B, T, h) of each MLP."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[path] = given[0].detach()

        return hook

    hooks = [
        dense.down.register_forward_pre_hook(keep(path)) for path, dense in mlps(model).items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def channel_masks(
    model: nn.Module, domains: Mapping[str, Sequence[Batch]], density: float = 0.5
) -> dict[str, Tensor]:
    """m_i: the round(density h) hidden units that text of domain i uses most, in every MLP.

    Returns path -> (E, h) bool, a row for each domain, in their order.
    Raises: ConfigError for no domain, or a density outside 0 ... 1; DataError for an empty one.
    Source: arXiv:2410.19123, section 3.1.
    """
    at_least("domains", len(domains), 1)
    above("density", density, 0, "Try 0.5.")
    between("density", density, 0, 1, "Try 0.5.")
    use = [channel_use(model, batches) for batches in domains.values()]
    return {
        path: torch.stack(
            [_top(one[path], max(1, round(density * one[path].numel()))) for one in use]
        )
        for path in use[0]
    }


def _top(values: Tensor, count: int) -> Tensor:
    """The `count` largest along the last axis, as bool."""
    index = values.topk(count, -1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, index, True)


@contextmanager
def masked(model: nn.Module, masks: Masks, expert: int) -> Iterator[None]:
    """Inside, the dense model has the units of one expert alone: the slow twin of the mixture."""

    def hook(keep: Tensor) -> Any:
        return lambda _, given: (given[0] * keep.to(given[0]),)

    found = mlps(model)
    hooks = [found[p].down.register_forward_pre_hook(hook(m[expert])) for p, m in masks.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@torch.no_grad()
def pregate_targets(model: nn.Module, masks: Masks, batch: Batch) -> Tensor:
    """What the gate shall say of each token of the dense model.  (B, T, E), sums to 1.

    Hits: how many of a token's strongest channels, by five fractions of them, are in mask i; their
    mean over layers and fractions, centred over experts, times 10, softmax.
    Source: arXiv:2410.19123, section 3.3, as the released code has it.
    """
    with evaluating(model), _hidden(model) as seen:
        model(**batch)
    total: Tensor = torch.zeros(())
    for path, h in seen.items():
        own = masks[path].to(h.device, torch.float32)  # (E, h); bf16 counts to 256
        strong = h.abs().sort(-1, descending=True).indices  # (B, T, h)
        hits = own.T[strong].cumsum(-2)  # (B, T, h, E)
        for fraction in FRACTIONS:
            count = max(1, round(fraction * h.shape[-1]))
            total = total + hits[..., count - 1, :] / count
    share = total / (len(seen) * len(FRACTIONS))
    return (SHARP * (share - share.mean(-1, keepdim=True))).softmax(-1)


def gate_loss(logits: Tensor, target: Tensor) -> Tensor:
    """.75 CE(argmax of the target, smoothing .5) + .25 CE(target).  (N, E), (N, E) -> ()."""
    hard = F.cross_entropy(logits, target.argmax(-1), label_smoothing=SMOOTHING)
    return (1 - SOFT) * hard + SOFT * F.cross_entropy(logits, target)


def train_gate(
    gate: PreGateNet,
    model: nn.Module,
    masks: Masks,
    batches: Sequence[Batch],
    *,
    steps: int = 100,
    lr: float = 3e-3,
    seed: int = 0,
    report: Report = lambda _: None,
) -> list[float]:
    """Teach the gate the targets of a dense model.  Returns the losses.

    batches: of mixed domains, drawn by the seed. Targets of a batch are computed once.
    """
    at_least("steps", steps, 1)
    targets: dict[int, Tensor] = {}
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(gate.parameters(), lr=lr)
    losses: list[float] = []
    for step in range(steps):
        at = int(torch.randint(len(batches), (), generator=draws))
        if at not in targets:
            targets[at] = pregate_targets(model, masks, batches[at])
        loss = gate_loss(gate(batches[at]["input_ids"]).flatten(0, 1), targets[at].flatten(0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            report(f"gate, step {step}: {losses[-1]:.3f}")
    return losses


def extract(
    model: nn.Module,
    domains: Mapping[str, Sequence[Batch]],
    settings: ReadMe | None = None,
    *,
    masks: Masks | None = None,
    gate: PreGateNet | None = None,
    steps: int = 100,
    seed: int = 0,
    report: Report = lambda _: None,
) -> nn.Module:
    """Turn a dense causal language model into Read-ME's mixture, in place.

    domains: name -> batches of the model's arguments, `input_ids` among them; one expert for each.
    The masks are made and the gate is trained for `steps` unless they are given; then every MLP
    becomes a mixture whose experts and residual are parts of it. Train it on after that, gate and
    experts by turns (the paper: 100 and 200 steps, five times, the rate times .8).

    Raises: TargetError for a model without MLPs of its own; ConfigError and DataError for domains
    that cannot be; ShapeError for masks of another model, or a gate of other experts.
    Not with a cache while generating: the gate reads all ids.
    Source: arXiv:2410.19123.
    """
    settings = settings or ReadMe()
    found = mlps(model)
    masks = masks or channel_masks(model, domains, settings.density)
    if gate is None:
        host: Any = model
        words = host.get_input_embeddings()
        config = PreGate(len(domains), 1, len(words.weight), settings.width, settings.heads)
        draws = torch.Generator().manual_seed(seed)
        gate = config.net(embedding=words.weight, generator=draws)
        mixed = [batch for some in zip(*domains.values(), strict=False) for batch in some]
        train_gate(gate, model, masks, mixed, steps=steps, seed=seed, report=report)
    _check_masks(masks, found, gate.config.experts)
    for path, dense in found.items():
        parent, _, name = path.rpartition(".")
        router = PreGateRouter(gate)
        made = read_me_mixture(dense.up, dense.gate, dense.down, dense.act, masks[path], router)
        made.to(dense.down.weight.device)  # the gate keeps the numbers that it was trained in
        setattr(model.get_submodule(parent), name, made)
    watch(model)
    return model


def _check_masks(masks: Masks, found: Mapping[str, DenseMlp], experts: int) -> None:
    """Raises: ShapeError for masks of another model, before an MLP of this one is replaced."""
    wanted = {path: (experts, dense.down.in_features) for path, dense in found.items()}
    shapes = {path: tuple(mask.shape) for path, mask in masks.items()}
    if wrong := [path for path in {**wanted, **shapes} if wanted.get(path) != shapes.get(path)]:
        at = wrong[0]
        fix = "Make them by channel_masks of this model."
        raise ShapeError(f"masks of {at}", got=shapes.get(at), want=wanted.get(at), fix=fix)


CARD = Card(
    "read_me",
    kind="change",
    config=ReadMe,
    paper=Paper(
        "2410.19123",
        2024,
        "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design",
    ),
    summary="Experts as parts of a dense model's MLPs, chosen once for all layers by a pre-gate.",
    family="experts",
    names=("Read-ME", "router-decoupled mixture of experts"),
    exceptions=dict.fromkeys(
        (
            "takes_a_host",
            "plans_without_a_trace",
            "leaves_no_trace_of_an_error",
            "preserves_what_it_says",
            "comes_back_from_its_folder",
            "folds_or_refuses",
        ),
        "it needs texts of several kinds, which are no setting that a file could hold",
    ),
)
