"""Experts out of a dense language model, by which hidden units each kind of text uses (Read-ME).

arXiv:2410.19123, section 3: masks of channels, the mixture, and the pre-gate's targets. Batching
by expert is in `placement.batching`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.change import Change, Plan
from ...core.checks import at_least
from ...core.errors import ConfigError, ShapeError
from ...core.modes import evaluating
from ...core.schema import check, setting
from ...gating import watch
from ...hosts.anatomy.dense_mlp import DenseMlp
from ...mixtures.read_me import read_me_mixture, residual_of
from ...routers.pregate import PreGate, PreGateNet, PreGateRouter
from .read_me_channels import Batch, Masks, channel_masks, hidden_units, masked, mlps

# shares n / N of an expert's own units, see `pregate_targets`
THRESHOLDS = (1.0, 0.8, 0.6, 0.4, 0.2)
SHARP, SMOOTHING, SOFT = 10.0, 0.5, 0.25  # released code
ROUNDS, GATE_STEPS, EXPERT_STEPS, DECAY = 5, 100, 200, 0.8  # released scripts
Report = Callable[[str], None]


@dataclass(frozen=True)
class ReadMe(Change):
    """Experts as parts of the dense model's MLPs, chosen by a pre-gate over token ids.

    `extract(model, domains)` does it: texts of several kinds are no settings.

    Raises: ConfigError for settings that cannot be, and in `apply`.
    Not for models without token ids.
    Source: arXiv:2410.19123.
    """

    density: float = setting(
        0.5,
        "The share of hidden units that an expert has, residual included.",
        above=0,
        most=1,
        fix="Try 0.5.",
    )
    width: int = setting(64, "The width of the gate, a multiple of its heads.", least=1)
    heads: int = setting(4, "The heads of the gate's attention.", least=1)

    recorded: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check(self)
        PreGate(width=self.width, heads=self.heads)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        want, fix = "texts of several kinds", "Call intarsia.privacy.extract(model, domains)."
        raise ConfigError("domains", got="none", want=want, fix=fix)


@torch.no_grad()
def pregate_targets(model: nn.Module, masks: Masks, batch: Batch) -> Tensor:
    """Compute each layer's share of experts for each token, which the gate is to learn.

    model: dense; masks: path of an MLP -> (E, h) bool, the hidden units of each expert; batch: of
    text. An expert's *hits* count how many of a token's n largest hidden units are its own, that is
    in its mask and not in all masks, added up for n = N (1, .8, .6, .4, .2), N the number of the
    first expert's own units. Returns softmax(10 hits / (3 N)) over experts, (L, B, T, E).
    Source: arXiv:2410.19123, section 3.3, as the released code has it, where the largest n is
    N - 1.
    """
    with evaluating(model), hidden_units(model) as hidden:
        model(**batch)
    layers: list[Tensor] = []
    for path, h in hidden.items():
        mask = masks[path].to(h.device)
        exclusive = (mask & ~residual_of(mask)).to(torch.float32)  # (E, h); bf16 counts to 256
        size = int(exclusive[0].sum())
        total = exclusive.new_zeros(*h.shape[:-1], len(exclusive))
        if size:
            # hits[n - 1, e]: how many of a token's n largest hidden units belong to expert e alone
            largest = h.sort(-1, descending=True).indices  # (B, T, h)
            hits = exclusive.T[largest].cumsum(-2)  # (B, T, h, E)
            for share in THRESHOLDS:
                count = size - 1 if share == 1 else int(share * size + 1e-9)
                total = total + (hits[..., count - 1, :] if count else 0)
            # 3 is the sum of the five shares, so that a token with all hits at one expert has 1
            total = total / (3 * size)
        layers.append((SHARP * total).softmax(-1))
    return torch.stack(layers)


def gate_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the gate's loss, summed over layers: a hard and a soft cross-entropy.

    .75 CE(most probable expert, label smoothing .5) + .25 CE(target).
    logits: (N, E) of N tokens; targets: (L, N, E), see `pregate_targets`. Returns a scalar.
    """
    total = logits.new_zeros(())
    for target in targets:
        hard = F.cross_entropy(logits, target.argmax(-1), label_smoothing=SMOOTHING)
        total = total + (1 - SOFT) * hard + SOFT * F.cross_entropy(logits, target)
    return total


def train_gate(
    gate: PreGateNet,
    model: nn.Module,
    masks: Masks,
    batches: Sequence[Batch],
    *,
    steps: int = GATE_STEPS,
    lr: float = 3e-3,
    seed: int = 0,
    report: Report = lambda _: None,
) -> list[float]:
    """Train the gate on the targets of a dense model; return the losses, means over layers.

    masks: path of an MLP -> (experts, hidden units) bool; batches: of mixed domains, drawn by the
    seed; steps: how many AdamW takes at rate lr; report: is given a line of text. Targets of a
    batch are computed once. Padding does not count.
    """
    # the dense model stays as it is in here, so the targets of a batch never change
    targets: dict[int, Tensor] = {}

    def loss(index: int) -> Tensor:
        """Compute the gate's loss on the batch of a number."""
        if index not in targets:
            targets[index] = pregate_targets(model, masks, batches[index])
        real = _not_padding(batches[index])
        total = gate_loss(gate(batches[index]["input_ids"])[real], targets[index][:, real])
        # a mean instead of the sum, which Adam's steps do not depend on
        return total / len(targets[index])

    turn = "gate", gate.parameters(), loss, len(batches)
    return _train(*turn, steps=steps, lr=lr, seed=seed, report=report)


def train_experts(
    gate: PreGateNet,
    model: nn.Module,
    masks: Masks,
    batches: Sequence[Batch],
    *,
    steps: int = EXPERT_STEPS,
    lr: float = 2e-5,
    seed: int = 0,
    report: Report = lambda _: None,
) -> list[float]:
    """Train a dense model's weights, each token with the units of the expert chosen by the gate.

    masks: path of an MLP -> (experts, hidden units) bool. The gate stays as it is. The loss is the
    next token's; padding does not count.
    Returns the losses.
    """

    def loss(index: int) -> Tensor:
        """Compute the next-token loss of a batch, each token with its expert's units alone."""
        ids, real = batches[index]["input_ids"], _not_padding(batches[index])[:, 1:]
        with torch.no_grad():
            expert = gate(ids).argmax(-1)
        # the slow form of the mixture: the dense model, each token with its expert's units alone
        with masked(model, masks, expert):
            logits: Tensor = model(**batches[index]).logits
        return F.cross_entropy(logits[:, :-1][real].float(), ids[:, 1:][real])

    weights = (p for p in model.parameters() if p.requires_grad)
    turn = "experts", weights, loss, len(batches)
    return _train(*turn, steps=steps, lr=lr, seed=seed, report=report)


def _train(
    name: str,
    weights: Iterable[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    batches: int,
    *,
    steps: int,
    lr: float,
    seed: int,
    report: Report,
) -> list[float]:
    """Train weights by AdamW, on batches that are drawn by the seed; return the losses."""
    at_least("steps", steps, 1)
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(weights, lr=lr)
    losses: list[float] = []
    for step in range(steps):
        # one batch a step, drawn with replacement
        loss = loss_of(int(torch.randint(batches, (), generator=draws)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            report(f"{name}, step {step}: {losses[-1]:.3f}")
    return losses


def train_in_turns(
    gate: PreGateNet,
    model: nn.Module,
    masks: Masks,
    batches: Sequence[Batch],
    *,
    rounds: int = ROUNDS,
    steps: tuple[int, int] = (GATE_STEPS, EXPERT_STEPS),
    lr: tuple[float, float] = (3e-3, 2e-5),
    seed: int = 0,
    report: Report = lambda _: None,
) -> list[tuple[float, float]]:
    """Train gate and experts by turns, before `extract` cuts the experts out of the dense model.

    masks: path of an MLP -> (experts, hidden units) bool; batches: of mixed domains.
    rounds: each trains the gate, with targets from the dense model as it is by then, and then
      the experts.
    steps, lr: of the gate and of the experts; both rates fall to .8 of themselves with each round.
    Experts share the units that several masks have, as in the released code; after `extract` each
    has its own copy. The rates are ours, since the released scripts leave them out.

    Returns the mean losses of each round, the gate's and the experts'.
    Raises: ConfigError for fewer than one round or step.
    Source: arXiv:2410.19123, section 3.3 and released scripts.
    """
    at_least("rounds", rounds, 1)
    losses: list[tuple[float, float]] = []
    for number in range(rounds):
        # one turn of the gate, then one of the experts, at rates that fall with each round
        of_gate, of_experts = (
            turn(
                gate,
                model,
                masks,
                batches,
                steps=count,
                lr=rate * DECAY**number,
                seed=seed + number,
                report=report,
            )
            for turn, count, rate in zip((train_gate, train_experts), steps, lr, strict=True)
        )
        losses.append((statistics.mean(of_gate), statistics.mean(of_experts)))
        report(f"round {number + 1}: gate {losses[-1][0]:.3f}, experts {losses[-1][1]:.3f}")
    return losses


def _not_padding(batch: Batch) -> Tensor:
    """Return which tokens of a batch are no padding, (B, T) bool."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]).bool() if mask is None else mask.bool()


def pre_gate(model: nn.Module, experts: int, settings: ReadMe, *, seed: int = 0) -> PreGateNet:
    """Build an untrained gate for a model; its embedding starts with columns of the model's.

    experts: number of experts; settings: width and heads of the gate; seed: of other weights.
    """
    host: Any = model
    words = host.get_input_embeddings().weight
    config = PreGate(experts, 1, len(words), settings.width, settings.heads)
    return config.net(embedding=words, generator=torch.Generator().manual_seed(seed))


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
    """Turn a dense causal language model into Read-ME's mixture of experts, in place.

    domains: name of a kind of text -> batches of the model's arguments, `input_ids` among them; one
    expert for each kind. settings: None = defaults; seed: of the gate's weights and draws; report:
    is given a line of text.
    masks, gate: made here, and the gate trained for `steps`, unless they are given; then every MLP
    becomes a mixture with its parts as experts and residual. The paper trains gate and experts
    by turns: call `train_in_turns` first, with `channel_masks` and `pre_gate`, and pass both on.

    Raises: TargetError for a model without MLPs of its own; ConfigError and DataError for domains
    that cannot be; ShapeError for masks of another model, or a gate of other experts.
    Not with a cache while generating: the gate reads all ids.
    Source: arXiv:2410.19123.
    """
    settings = settings or ReadMe()
    dense_mlps = mlps(model)
    masks = masks or channel_masks(model, domains, settings.density)
    if gate is None:
        gate = pre_gate(model, len(domains), settings, seed=seed)
        # a batch of each domain by turns, as many as the shortest domain has
        mixed = [batch for turn in zip(*domains.values(), strict=False) for batch in turn]
        train_gate(gate, model, masks, mixed, steps=steps, seed=seed, report=report)
    _check_masks(masks, dense_mlps, gate.config.experts)
    for path, dense in dense_mlps.items():
        parent, _, name = path.rpartition(".")
        router = PreGateRouter(gate)
        mixture = read_me_mixture(dense.up, dense.gate, dense.down, dense.act, masks[path], router)
        mixture.to(dense.down.weight.device)  # the gate keeps the numbers that it was trained in
        setattr(model.get_submodule(parent), name, mixture)
    watch(model)
    return model


def _check_masks(masks: Masks, dense_mlps: Mapping[str, DenseMlp], experts: int) -> None:
    expected = {path: (experts, dense.down.in_features) for path, dense in dense_mlps.items()}
    shapes = {path: tuple(mask.shape) for path, mask in masks.items()}
    if wrong := [path for path in {**expected, **shapes} if expected.get(path) != shapes.get(path)]:
        wrong_path = wrong[0]
        fix = "Make them by channel_masks of this model."
        raise ShapeError(
            f"masks of {wrong_path}",
            got=shapes.get(wrong_path),
            want=expected.get(wrong_path),
            fix=fix,
        )


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
