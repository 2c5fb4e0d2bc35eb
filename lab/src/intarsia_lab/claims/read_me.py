"""Read-ME: experts out of SmolLM2 by kind of text, a gate over ids, batches by expert."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intarsia.data.language_models import language_model
from intarsia.mixtures.read_me import random_masks
from intarsia.placement.batching import LookAhead, serve
from intarsia.placement.cache import most_used, replay
from intarsia.placement.describe import demand
from intarsia.placement.policies import Belady, Expected, Lru
from intarsia.routers.pregate import PreGate
from intarsia.sparse.swap.read_me import Batch, channel_masks, masked, pregate_targets, train_gate

from ..kit import SIMULATED, Report, Result, Study, UnknownEffect, below
from ..kit.arms import result_of, shown, threads
from ..kit.stored import StoredResults
from ..materials.routing_traces import KINDS, texts, traces

stored = StoredResults(__file__)

LENGTH, BATCH, SEEN, JUDGED, STEPS, DENSITY = 128, 4, 3, 1, 100, 0.5
LIMIT, PATIENCE, STREAMS, SHARE, WINDOW = 8, 8, 24, 0.25, 8
Cell = Mapping[str, Any]


def domains(tokenizer: Any, seed: int) -> tuple[dict[str, list[Batch]], dict[str, list[Batch]]]:
    """Return batches of rows of each kind of text: to make masks of, and to judge by.

    tokenizer: SmolLM2's; seed: draws the rows. Each batch is a dict of input_ids (4, 128).
    """
    draws = torch.Generator().manual_seed(seed)
    calibration: dict[str, list[Batch]] = {}
    judged: dict[str, list[Batch]] = {}
    for name, text in texts().items():
        ids = torch.tensor(tokenizer(text[:400_000], verbose=False)["input_ids"])
        rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        rows = rows[torch.randperm(len(rows), generator=draws)[: BATCH * (SEEN + JUDGED)]]
        batches: list[Batch] = [{"input_ids": part} for part in rows.split(BATCH)]
        calibration[name], judged[name] = batches[:SEEN], batches[SEEN:]
    return calibration, judged


@lru_cache
def extracted(seed: int, report: Report) -> Cell:
    """Return the losses of SmolLM2 cut into experts by kind of text, stored or computed now.

    See `_extracted` for the keys of the result.
    """
    inputs = {"seed": seed, "density": DENSITY, "steps": STEPS}
    inputs |= {"rows": [LENGTH, BATCH, SEEN, JUDGED]}
    with threads(1):
        return stored("read_me", inputs, lambda: _extracted(seed, report))


def _extracted(seed: int, report: Report) -> dict[str, Any]:
    """Cut SmolLM2 into an expert for each kind of text; return losses and a gate's accuracy."""
    model: Any
    model, tokenizer = language_model("smollm2", progress=report)
    model.eval()
    calibration, judged = domains(tokenizer, seed)
    masks = channel_masks(model, calibration, DENSITY)
    draws = torch.Generator().manual_seed(seed)
    # the control: masks of the same sizes, with randomly drawn units
    drawn = {path: random_masks(mask, draws) for path, mask in masks.items()}
    losses: dict[str, dict[str, float]] = {}
    for i, (name, batches) in enumerate(judged.items()):
        by_mask = {"dense": _loss(model, batches)}
        for mask_name, some in (("own mask", masks), ("random mask", drawn)):
            with masked(model, some, i):
                by_mask[mask_name] = _loss(model, batches)
        with masked(model, masks, (i + 1) % len(judged)):
            # whether a mask is of its text or good for any
            by_mask["another's mask"] = _loss(model, batches)
        losses[name] = by_mask
        report(f"  {name}, seed {seed}: {by_mask}")
    words = model.get_input_embeddings().weight
    # the paper's gate reads ids alone, before the model runs
    gate = PreGate(len(calibration), vocabulary=len(words), width=64, heads=4).net(
        embedding=words, generator=draws
    )
    mixed = [batch for some in zip(*calibration.values(), strict=True) for batch in some]
    train_gate(gate, model, masks, mixed, steps=STEPS, seed=seed, report=report)
    right: list[Tensor] = []
    targets: list[Tensor] = []
    for batches in judged.values():
        for batch in batches:
            target = pregate_targets(model, masks, batch).argmax(-1)  # (L, B, T)
            targets.append(target.flatten())
            with torch.no_grad():
                right.append((gate(batch["input_ids"]).argmax(-1) == target).float().flatten())
    accuracy = float(torch.cat(right).mean())
    # a gate that always says the commonest target has this accuracy
    commonest = float(torch.bincount(torch.cat(targets)).max() / len(torch.cat(targets)))
    return {
        "losses": losses,
        "accuracy": accuracy,
        "chance": 1 / len(calibration),
        "most": commonest,
    }


@torch.no_grad()
def _loss(model: Any, batches: list[Batch]) -> float:
    """Return the mean next-token loss of a causal model over batches, in nats."""
    batch_losses: list[float] = []
    for batch in batches:
        logits, ids = model(**batch).logits[:, :-1].float(), batch["input_ids"][:, 1:]
        batch_losses.append(float(F.cross_entropy(logits.flatten(0, 1), ids.flatten())))
    return statistics.mean(batch_losses)


def model_side(
    seeds: tuple[int, ...], report: Report, *, figure: Callable[[Cell], float]
) -> Result:
    """Return a figure of experts cut from SmolLM2, one value for each seed.

    figure: result of `_extracted` -> the number to judge.
    """
    extractions = [extracted(seed, report) for seed in seeds]
    rows: list[dict[str, Any]] = []
    for name in extractions[0]["losses"]:
        row: dict[str, Any] = {"text": name}
        for column in extractions[0]["losses"][name]:
            row[column] = shown(
                [extraction["losses"][name][column] for extraction in extractions], ".3f"
            )
        rows.append(row)
    # the gate next to the share of the commonest expert, which a gate that learned nothing would
    # have; "own mask" is only the first column of numbers
    for column, name in (("gate's accuracy", "accuracy"), ("share of the commonest", "most")):
        rows.append(
            {
                "text": column,
                "own mask": shown([extraction[name] for extraction in extractions], ".3f"),
            }
        )
    return result_of([figure(extraction) for extraction in extractions], rows, NOTE)


def worst_gain(extraction: Cell) -> float:
    """Return the loss under a text's own mask minus that under a random one, for the worst text.

    extraction: result of `_extracted`. In nats per token; below 0 a text's own mask is better for
    each.
    """
    return max(
        text_losses["own mask"] - text_losses["random mask"]
        for text_losses in extraction["losses"].values()
    )


@lru_cache
def served(kind: str, seed: int, report: Report) -> dict[str, float]:
    """Replay recorded routing in batches by expert and through caches; return their savings.

    kind: of the trace. Keys: "ratio": different experts in a batch if streams queue for their
    expert, over the number in order of arrival; "wait", "wait in order": rounds that a stream
    waits, 95th percentile; and hit rates of caches with a quarter of the experts, from least
    recently used to Belady's, which knows the future.
    """
    trace = traces(seed, report)[kind]
    ratios: list[float] = []
    waits: list[tuple[int, int]] = []
    for layer in range(trace.layers):
        aware = serve(trace, LIMIT, layer=layer, patience=PATIENCE, streams=STREAMS)
        # the same streams in the order of arrival
        fifo = serve(trace, LIMIT, layer=layer, streams=STREAMS, how="fifo")
        ratios.append(aware.unique / fifo.unique)
        waits.append((aware.wait(), fifo.wait()))
    before, after = trace.split(seed=seed)
    steps, sizes = demand(after, 4), (trace.layers, trace.experts)
    slots = round(SHARE * trace.layers * trace.experts)
    # the contents are a profile of other sequences: no cache begins with the answer
    warm = most_used(demand(before, 4), slots)
    policies = {
        "LRU": Lru().build(*sizes),
        "expected": Expected().build(*sizes),
        "one step": LookAhead(*sizes, steps, 1),
        "eight steps": LookAhead(*sizes, steps, WINDOW),
        "Belady": Belady(*sizes, steps),
    }
    rates = {name: replay(steps, p, slots, start=warm).rate for name, p in policies.items()}
    figures = {"ratio": statistics.mean(ratios)}
    figures |= {"wait": statistics.mean(a for a, _ in waits)}
    return figures | {"wait in order": statistics.mean(b for _, b in waits)} | rates


def serving(
    seeds: tuple[int, ...], report: Report, *, figure: Callable[[Mapping[str, float]], float]
) -> Result:
    """Return a figure of served batches on the balanced trace, by seed; the table has three traces.

    figure: result of `served` -> the number to judge.
    """
    by_kind = {kind: [served(kind, seed, report) for seed in seeds] for kind in KINDS}
    rows: list[dict[str, Any]] = []
    for kind, some in by_kind.items():
        columns = {name: shown([figures[name] for figures in some], ".3f") for name in some[0]}
        rows.append({"trace": kind} | columns)
    return result_of([figure(figures) for figures in by_kind["balanced"]], rows, SERVED)


NOTE = (
    "SmolLM2-135M cut by four kinds of text, half of the hidden units for each; loss in nats a "
    "token on rows that made no mask, without any training of the experts. Random masks have the "
    "same sizes. The gate's accuracy is the agreement with the strongest target there, over all "
    "layers, each of which has its own; the gate has one choice for all of them."
)
SERVED = (
    "ratio: different experts in a batch of 8 of 24 streams, by queues with ageing after 8 rounds, "
    "over batches in order, mean of the layers, each with a token's first expert. wait: rounds, "
    "95th percentile. Hit rates: a quarter of the 96 experts, four streams, warm from other "
    "sequences."
)
study = partial(Study, sense="<=", needs="long", minutes=20)

CLAIMS = (
    study(
        "read-me-extraction",
        sentence="Hidden units that a kind of text uses make its expert (arXiv:2410.19123): loss "
        "of a text with its own mask less that with a random one of equal size, the worst text.",
        baseline="random units; difference in nats a token",
        target=0.0,
        control=below(
            "The baseline, a random mask, is better than a uniform guess among 2,048 tokens.",
            "random mask",
            7.62,
        ),
        measure=partial(model_side, figure=worst_gain),
    ),
    study(
        "read-me-gate",
        system="Read-ME",
        unit="times as often right as chance",
        effect=UnknownEffect("The accuracy of the paper's gate was not found."),
        work="SmolLM2-135M by kind of text",
        sentence="A gate that reads ids alone foresees the expert (arXiv:2410.19123): its accuracy "
        "over chance.",
        baseline="chance; ratio",
        target=1.0,
        sense=">=",
        control=below(
            "The dense model is better than a uniform guess among 2,048 tokens by 2 nats.",
            "dense",
            5.6,
        ),
        measure=partial(model_side, figure=lambda figures: figures["accuracy"] / figures["chance"]),
    ),
    study(
        "read-me-batching",
        sentence="Batches by expert use fewer experts (arXiv:2410.19123), with ageing.",
        baseline="batches in order of arrival; ratio of different experts in a batch",
        target=0.75,
        control=SIMULATED,
        measure=partial(serving, figure=lambda figures: figures["ratio"]),
    ),
    study(
        "read-me-ahead",
        sentence="A cache that knows what is queued comes near the best one (arXiv:2410.19123): "
        "Belady's hit rate less that with eight steps known, four streams.",
        baseline="Belady from the same contents; difference",
        target=0.005,
        control=SIMULATED,
        measure=partial(serving, figure=lambda figures: figures["Belady"] - figures["eight steps"]),
    ),
)
