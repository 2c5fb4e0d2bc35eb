"""Mixtures of LoRA experts against plain LoRA on domains that conflict, and what sharing saves.

Domains: the kind of noun of a gloss, the group of an emoji, the definition of a noun, the rest of a
sentence of Austen's. SmolLM2's last two blocks are adapted, in their MLPs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from intarsia.adapters import Lora
from intarsia.core import Method, Routing, Site
from intarsia.fitting import evaluate, fit
from intarsia.folders.verbs import adapt
from intarsia.gating import learned_routers
from intarsia.kernels.experts import add_mix
from intarsia.methods import LlavaMole, MixLora
from intarsia.mixtures.lora_experts import OutputExperts, grouped_pairs
from intarsia.routers import TopK

from ..kit import ArmRate, Effect, Rates, Report, Result, Study
from ..kit.arms import result_of, shown, threads
from ..kit.stored import StoredResults
from ..materials import short_texts
from ..materials.last_blocks import LanguageRows, Row, StateTokens, padded

stored = StoredResults(__file__)

# the plain LoRA has an expert's rank: as many active parameters for each token
RANK, EXPERTS = 4, 4  # of LLaVA-MoLE: an expert for each domain
TRAIN, TEST = 320, 160  # rows of a domain
# 80 steps a domain: after 40 a plain LoRA of twice the steps gained most of the experts' gain
EPOCHS, BATCH = 4, 16
TUNED = 99  # the seed of the runs that choose rates
LEAST = 1.02  # below this ratio there is no conflict to resolve
SHAPE = {"tokens": 2048, "width": 576, "hidden": 1536}  # SmolLM2-135M's MLP
DOMAINS = {
    "kinds": short_texts.kinds,
    "emoji": short_texts.emoji,
    "definitions": short_texts.defined,
    "Austen": short_texts.sentences,
}
Losses = Mapping[str, tuple[float, float]]  # domain -> loss of a token, answers that are right


@dataclass(frozen=True)
class Trained:
    """A way to train adapters: the method, a factor on the epochs, `mixed` or each domain alone."""

    method: Method
    times: int = 1
    mixed: bool = True


def lora(rank: int) -> Lora:
    """Return LoRA of this rank on the linear maps of the MLPs."""
    return Lora(rank, roles=("mlp_linear",))


def mole(scale: str) -> Trained:
    """Return LLaVA-MoLE, four LoRA experts with one for each token, trained on all domains.

    scale: what an expert's output is multiplied by: "prob", the router's probability, or "none".
    """
    return Trained(LlavaMole(EXPERTS, lora(RANK), scale, attention=None))


LORA, LONG = f"LoRA, r = {RANK}", f"LoRA, r = {RANK}, twice the steps"
SINGLE = f"LoRA, r = {RANK}, one for each domain"
MOLE, FREE = (f"MoLE, E = {EXPERTS}, r = {RANK}, scale {scale!r}" for scale in ("prob", "none"))
MIX, EQUAL = f"MixLoRA, E = 8, k = 2, r = {RANK}", f"LoRA, r = {8 * RANK}"
ARMS: dict[str, Trained] = {
    # no conflict: what mixing the domains costs is measured from here
    SINGLE: Trained(lora(RANK), mixed=False),
    LORA: Trained(lora(RANK)),
    # the paper's own rival: a plain LoRA that sees twice the samples
    LONG: Trained(lora(RANK), times=2),
    MOLE: mole("prob"),
    FREE: mole("none"),
    # as many parameters as all experts of MixLoRA have together
    EQUAL: Trained(lora(8 * RANK)),
    MIX: Trained(MixLora(TopK(8, 2), lora(RANK), attention=None)),
}
STEPS = EPOCHS * TRAIN * len(DOMAINS) // BATCH  # of all domains, together or one by one
# arms of a study: it trains no others, since each takes minutes for every rate and seed
CONFLICT, CLOSED = (SINGLE, LORA), (SINGLE, LORA, MOLE)
TWICE, WITH_MORE = (LORA, LONG, MOLE, FREE), (EQUAL, MIX)


def grid(names: Sequence[str]) -> Rates:
    """Return the learning rates that each of some arms chooses from.  names: of ARMS."""
    return Rates((1e-3, 3e-3, 1e-2), {name: STEPS * ARMS[name].times for name in names})


@lru_cache(maxsize=1)
def bench() -> LanguageRows:
    """Return the rows of all domains, and SmolLM2's last two blocks to train on them."""
    return LanguageRows({name: load()[: TRAIN + 2 * TEST] for name, load in DOMAINS.items()})


def rows(domain: str, part: str) -> list[Row]:
    """Return the rows of a domain.

    domain: key of DOMAINS; part: "train", "test", or "val", which chooses rates.
    """
    domain_rows = bench().rows[domain]
    return {
        "test": domain_rows[:TEST],
        "val": domain_rows[TEST : 2 * TEST],
        "train": domain_rows[2 * TEST :],
    }[part]


def train(arm: Trained, domains: Sequence[str], lr: float, seed: int) -> nn.Module:
    """Train an arm on the rows of some domains together; return the last blocks."""
    # frozen states of 28 blocks are computed once: a step costs two blocks
    model = adapt(bench().model(), arm.method, head=None, seed=seed)
    mixed: Any = list(chain(*(rows(domain, "train") for domain in domains)))
    fit(
        model,
        mixed,
        task=StateTokens(),
        epochs=EPOCHS * arm.times,
        batch_size=BATCH,
        lr=lr,
        seed=seed,
        trackers=(),
    )
    return model


def losses(model: nn.Module, domains: Sequence[str], part: str) -> Losses:
    """Return a model's loss per token and its share of right answers on each domain.

    The loss is in nats; an answer is right if all of its tokens are. domains: keys of DOMAINS;
    part: "test" or "val".
    """
    by_domain: dict[str, tuple[float, float]] = {}
    for domain in domains:
        data: Any = rows(domain, part)
        scores = evaluate(model, data, task=StateTokens(), batch_size=32).scores()
        by_domain[domain] = float(scores["loss"]), float(scores["exact_match"])
    return by_domain


def inputs_of(**extra: Any) -> dict[str, Any]:
    """Return what every stored result depends on: sizes of data and training, and `extra`."""
    inputs = {"rows": [TRAIN, TEST], "training": [EPOCHS, BATCH]}
    return inputs | {"domains": list(DOMAINS)} | extra


def scored(arm: Trained, lr: float, seed: int, part: str) -> tuple[Losses, float]:
    """Train an arm; return its losses by domain, and the largest share that one expert has.

    arm: the way to train; lr: learning rate; part: of the rows that are scored, "test" or "val".
    The share is 0 to 1 of a block's pairs of a token and an expert, 0 without experts.
    """
    losses_by_domain, share = dict[str, tuple[float, float]](), 0.0
    with threads(1):
        # a LoRA for each domain is trained and scored on that domain alone
        for domains in [list(DOMAINS)] if arm.mixed else [[domain] for domain in DOMAINS]:
            model = train(arm, domains, lr, seed)
            losses_by_domain |= losses(model, domains, part)
            share = max(share, largest_share(model))
    return losses_by_domain, share


def validated(name: str, lr: float) -> float:
    """Return minus the mean log loss of an arm on validation rows, by which rates are chosen.

    name: key of ARMS; lr: the learning rate that is tried.
    """
    return -log_loss({"losses": scored(ARMS[name], lr, TUNED, "val")[0]})


def rates(names: Sequence[str], report: Report) -> tuple[ArmRate, ...]:
    """Return the learning rate that each arm chooses on validation rows, chosen once and stored.

    names: of ARMS; all of them try the same rates.
    """
    return stored.choose("mixtures", grid(names), inputs_of(), validated, report)


def cell(name: str, lr: float, seed: int, report: Report) -> dict[str, Any]:
    """Train an arm; return its test losses by domain and its largest share of an expert.

    The result is stored and read if it was computed before. name: key of ARMS; lr: learning rate.
    The keys are "losses", see `losses`, and "share", see `scored`.
    """

    def run() -> dict[str, Any]:
        """Train the arm and test it; return its losses by domain and an expert's largest share."""
        losses_by_domain, share = scored(ARMS[name], lr, seed, "test")
        report(
            f"  seed {seed}, {name}: "
            + ", ".join(f"{d} {v[0]:.3f}" for d, v in losses_by_domain.items())
        )
        return {"losses": losses_by_domain, "share": share}

    # stored by the rate as well: a newly chosen rate is another run
    return stored("mixtures", inputs_of(arm=name, seed=seed, rate=lr), run)


@torch.no_grad()
def largest_share(model: nn.Module) -> float:
    """Return the largest share that an expert has of a block's token-expert pairs, 0 to 1.

    It is of one batch with 16 test rows of every domain; 0 for a model without experts.
    """
    if not learned_routers(model):
        return 0.0
    batch: Any = padded(list(chain(*(rows(domain, "test")[:16] for domain in DOMAINS))))[0]
    model.train()(**batch)
    routings = [r.last for r in learned_routers(model).values() if r.last is not None]
    return max((float(r.load().max() / r.load().sum()) for r in routings), default=0.0)


def log_loss(result: Mapping[str, Any]) -> float:
    """Return the mean over domains of the log of the loss: the log of their geometric mean."""
    return statistics.mean(math.log(loss) for loss, _ in result["losses"].values())


def ratio(
    seeds: Sequence[int], report: Report, *, names: Sequence[str], ours: str, over: str
) -> Result:
    """Return one arm's loss over another's, the geometric mean of four domains, by seed.

    Every arm adapts SmolLM2's last two blocks to short texts of four domains, at its own learning
    rate. names: of ARMS, those in the table; ours, over: two of them. Losses are of test tokens.
    """
    arm_rates = rates(names, report)
    by_arm = cells(arm_rates, seeds, report)
    # geometric means, so that no domain weighs more by the size of its loss
    logs = {name: [log_loss(result) for result in results] for name, results in by_arm.items()}
    values = [math.exp(a - b) for a, b in zip(logs[ours], logs[over], strict=True)]
    return result_of(values, table(by_arm), NOTE, rates=arm_rates)


def closed(seeds: Sequence[int], report: Report) -> Result:
    """Return the share of the conflict of domains that LLaVA-MoLE resolves, by seed.

    The conflict is the log loss of one LoRA that learns all domains minus the log loss of a LoRA
    for each domain; resolving it means to lose less than the former. 1 = all of it; 0 where there
    is no conflict, below a ratio of 1.02.
    """
    arm_rates = rates(CLOSED, report)
    by_arm = cells(arm_rates, seeds, report)
    single, mixed, ours = ([log_loss(result) for result in by_arm[name]] for name in CLOSED)
    gap = statistics.mean(mixed) - statistics.mean(single)
    # without a conflict nothing is resolved, and a share of a gap of nothing means nothing
    conflict = gap >= math.log(LEAST)
    values = [(m - o) / gap if conflict else 0.0 for m, o in zip(mixed, ours, strict=True)]
    words = f"The mixed LoRA's loss is {math.exp(gap):.3f} times that of one for each domain. "
    return result_of(values, table(by_arm), words + NOTE, rates=arm_rates)


def cells(
    arm_rates: Sequence[ArmRate], seeds: Sequence[int], report: Report
) -> dict[str, list[dict[str, Any]]]:
    """Train each arm from every seed at the rate that it chose; return the results by arm.

    arm_rates: of each arm; `cell` gives the results, in the order of the seeds.
    """
    return {
        rate.arm: [cell(rate.arm, rate.rate, seed, report) for seed in seeds] for rate in arm_rates
    }


def table(by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Any], ...]:
    """Return a table's line for each arm: loss of a token by domain, and shares of right answers.

    by_arm: results of `cell`, one for each seed. Right answers are of the two domains with few
    possible answers. The last but one has the loss over the loss of the table's first arm.
    """
    lines: list[dict[str, Any]] = []
    base = [log_loss(result) for result in next(iter(by_arm.values()))]
    for name, results in by_arm.items():
        line: dict[str, Any] = {"arm": name}
        for domain in DOMAINS:
            line[domain] = shown([result["losses"][domain][0] for result in results], ".3f")
        for domain in ("kinds", "emoji"):
            line[f"{domain}, right"] = shown(
                [result["losses"][domain][1] for result in results], ".3f"
            )
        # relative to the first arm, so that domains of unlike losses can be read side by side
        ratios = [math.exp(log_loss(o) - b) for o, b in zip(results, base, strict=True)]
        line["over the first arm"] = shown(ratios, ".3f")
        share = max(result["share"] for result in results)
        lines.append(line | {"largest share": f"{share:.2f}" if share else ""})
    return tuple(lines)


NOTE = (
    "Loss of an answer's token on held-out rows, over the tokens that occur in answers, by domain; "
    f"arms are compared by geometric means over domains. {TRAIN} rows of each of four domains, "
    f"{EPOCHS} epochs of batches of {BATCH} for every arm but one with twice the steps, "
    f"{TEST} rows tested. SmolLM2's last two blocks on states of the other 28, LoRAs on gate, up "
    "and down of their MLPs. The last column is the largest share that one expert has in a block's "
    "pairs of a token and an expert, after training."
)


def shared_mlp(seed: int) -> tuple[OutputExperts, nn.Module, Tensor, Routing]:
    """Build MixLoRA's adapter on an MLP of SmolLM2-135M's shape with random weights.

    Returns the adapter, the MLP, inputs (2048, 576) and the routing of these inputs to the experts.
    """
    width, hidden = SHAPE["width"], SHAPE["hidden"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp = LlamaMLP(LlamaConfig(hidden_size=width, intermediate_size=hidden)).eval()
        x = torch.randn(SHAPE["tokens"], width)
    layers = tuple(
        (n, m.in_features, m.out_features)
        for n, m in mlp.named_children()
        if isinstance(m, nn.Linear)
    )
    generator = torch.Generator().manual_seed(seed)
    method = MixLora(attention=None)
    cell = method.build(Site("mlp", width, width, layers=layers), generator=generator)
    assert isinstance(cell, OutputExperts)
    with torch.no_grad():
        for parameter in cell.parameters():
            # B starts at 0, and experts that add nothing would be no test of the outputs
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    cell.eval()
    return cell, mlp, x, cell.router(x)


def naive(cell: OutputExperts, mlp: nn.Module, x: Tensor, routing: Routing) -> Tensor:
    """Return the mixture's output by running each active expert's whole MLP on its tokens.

    cell: the LoRA experts; mlp: the frozen MLP; x: (tokens, width); routing: which experts a token
    has, and their weights.
    """

    def weighted(e: int, rows: Tensor, weight: Tensor) -> Tensor:
        """Return expert e's output on its rows, times the routing weights."""
        return cell.alone(mlp, e, rows) * weight[:, None]

    y = torch.zeros_like(x)
    add_mix(grouped_pairs(routing), x, (y, [partial(weighted, e) for e in range(routing.experts)]))
    return y


study = partial(Study, work="SmolLM2; four domains of short texts", seeds=(0, 1, 2, 3, 4))

STUDIES = (
    study(
        "llava-mole",
        system="LLaVA-MoLE",
        arxiv="2401.16160",
        question="Do LoRA experts close the gap that mixing domains opens?",
        effect=Effect(
            "mixing costs 306.3 to 295.8; MoLE above plain LoRA with twice the samples",
            "LLaVA-1.5, three domains",
            "notes of third parties",
            sign=1,
        ),
        baseline="one LoRA of all domains, whose gap to a LoRA of each is 1",
        unit="of the gap, where 1 is all of it",
        differs="A router of 320 steps on texts, without pictures.",
        measure=closed,
        minutes=28,
    ),
    study(
        "mixlora",
        system="MixLoRA",
        arxiv="2404.15159",
        question="Is a mixture of LoRA experts better than one LoRA as large?",
        effect=Effect(
            "77.6 against 71.8 of LoRA and 75.3 of DoRA",
            "mean of eight tasks, LLaMA2-7B, 2.9 % of parameters",
            "official repository",
            sign=-1,
            null=1.0,
        ),
        baseline="a plain LoRA with the rank of all experts together, as many steps",
        unit="times the test loss of LoRA",
        differs="Losses of a model of 135 million weights; the paper counts accuracy.",
        measure=partial(ratio, names=WITH_MORE, ours=MIX, over=EQUAL),
        minutes=19,
    ),
)
