"""Hecate: copies of the busiest experts for each batch, against lasting copies and none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from intarsia.parallel.ep import ExpertParallel
from intarsia.parallel.fssdp import Fssdp
from intarsia.placement.engines import ExpertSize
from intarsia.placement.timeline import simulate
from intarsia.placement.topology import Topology
from intarsia.placement.trace import Trace

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of
from ..materials.routing_traces import traces

DEVICES, TOKENS = 8, 1024  # of a batch
LINKS = Topology.two_level(2, 4)
# the paper's GPT-MoE, and tokens of a device; each measured row then stands for TIMES like it
SIZE, EACH = ExpertSize(768, 3072, gated=False), 4096
TIMES = EACH * DEVICES // TOKENS
COPIES = 16  # places in addition to the experts' own
SETTINGS = Fssdp(memory=COPIES // DEVICES, hottest=8, window=5)
EP, HECATE = "plain", "Hecate"


def repeated(batch: Trace, times: int) -> Trace:
    """Return a batch that has each of its sequences `times` times, with the same routes."""
    # new numbers for the copies, or they would be one long sequence
    first = batch.sequence.unique(return_inverse=True)[1]
    copy = torch.arange(times).repeat_interleave(len(batch))
    weight = None if batch.weight is None else batch.weight.repeat(times, 1, 1)
    return replace(
        batch,
        expert=batch.expert.repeat(times, 1, 1),
        sequence=first.repeat(times) + copy * (int(first.max()) + 1),
        position=batch.position.repeat(times),
        weight=weight,
        token=None,
    )


def faster(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the simulated time of a training batch without copies over that with Hecate's copies.

    The time model has two nodes of four devices, and adds up sending and computing, forward and
    backward. Batches are of the balanced trace. One ratio for each seed, above
    1 if Hecate is faster.
    """
    values: list[float] = []
    for seed in seeds:
        trace = traces(seed, report)["balanced"]
        starts = range(0, len(trace) - TOKENS, TOKENS)
        batches = [repeated(trace.rows(slice(index, index + TOKENS)), TIMES) for index in starts]
        seconds = {EP: 0.0, HECATE: 0.0}
        for index in range(SETTINGS.window, len(batches)):
            past = [batch.load() for batch in batches[index - SETTINGS.window : index]]
            arms: Mapping[str, Any] = {EP: ExpertParallel(), HECATE: SETTINGS}
            for name, method in arms.items():
                # backward too: copies of parameters are gathered, their gradients scattered
                plan = method.plan(batches[index], SIZE, LINKS, backward=True, past=past)
                seconds[name] += simulate(plan, LINKS).seconds
        values.append(seconds[EP] / seconds[HECATE])
    rows = [{"seed": seed, "times": f"{v:.3f}"} for seed, v in zip(seeds, values, strict=True)]
    return result_of(values, rows, NOTE)


NOTE = (
    "Eight devices on two nodes, links 12 : 1; batches of 1,024 tokens in the order of their kinds "
    "of text, so that loads drift; traces of small mixtures trained for each seed, top-2 of 16 in "
    "6 layers. Hecate has 16 places for copies and fills them anew for each batch, from the five "
    "before. Times are those of a model of time, with experts of the paper's GPT-MoE (768 wide, "
    "3,072 hidden, two matrices, 2 bytes a number) and 4,096 tokens a device, each measured row "
    "standing for 32; they are no measurements."
)


STUDIES = (
    Study(
        "hecate-time-gpt",
        system="Hecate",
        arxiv="2502.02581",
        question="Do copies of experts for one batch shorten a training step?",
        effect=Effect(
            "1.26 to 1.78 times as fast as plain expert parallelism",
            "GPT and BERT with 64 experts, 16 and 32 GPUs",
            "sections 5.2 and 5.3",
            sign=1,
            values=(1.26, 1.78),
            null=1.0,
        ),
        work="routing traces of small mixtures, times simulated at the paper's sizes",
        baseline="plain expert parallelism",
        unit="times as fast, simulated",
        differs="Loads of small mixtures drift with the order of the texts alone; a model of time.",
        measure=faster,
        minutes=30,
    ),
)
