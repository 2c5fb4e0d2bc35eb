"""GQSA: what half of the groups at 4 bits costs a language model, and its product (2412.17560)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from intarsia.core import nbytes
from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.methods.gqsa.gqsa import Gqsa
from intarsia.methods.gqsa.stages import Tuning
from intarsia.runs.pool import Arm
from intarsia.sparse.prune.pruner import sparsify
from intarsia.sparse.prune.pruners import SparseGPT
from intarsia.sparse.prune.rows import batched

from ..kit import Effect, Report, Result, Study
from ..kit.arms import each, result_of
from ..kit.stored import StoredResults
from ..materials.token_loss import nll

stored = StoredResults(__file__)

TEXTS: tuple[str, ...] = ("austen", "python-docs")
CALIBRATION, HELD_OUT, LENGTH = 16, 24, 256  # rows, rows, tokens
# no training: codes and scales as OBS leaves them
UNTRAINED = Tuning(blocks=0, model=0)
ARMS: Mapping[str, Any] = {
    "dense": None,
    "W4 S50, OBS + BQPO + E2E": Gqsa(),
    "2:4 SparseGPT, 16 bits": SparseGPT(0.5, "2:4"),
    # dense rivals: 3 bits is as large as half of the groups at 4 bits, 2 bits is smaller
    "W3 G64 GPTQ": Gqsa(bits=3, group=64, density=1.0, tuning=UNTRAINED),
    "W2 G64 GPTQ": Gqsa(bits=2, group=64, density=1.0, tuning=UNTRAINED),
}
OURS, PAIRS = "W4 S50, OBS + BQPO + E2E", "2:4 SparseGPT, 16 bits"


class CodeScore(NamedTuple):
    """Mean loss of a held-out token, and bits a weight of the linear layers."""

    nll: float
    bits: float


class GqsaCells:
    """SmolLM2, dense again before each cell; cells are kept."""

    def __init__(self) -> None:
        """Load nothing yet: the model and the texts' rows are loaded when a result is computed."""
        self.model: Any = None
        self.rows: dict[str, Any] = {}

    def cell(self, arm: str, text: str, seed: int) -> CodeScore:
        """Compress SmolLM2 in one way; return its loss on held-out text and its bits per weight.

        The result is stored, and read if it was computed before. arm: key of ARMS, the way to
        compress; text: key of TEXTS, for calibration and test; seed: which rows calibrate.
        """
        inputs = {"arm": arm, "text": text, "seed": seed}
        return CodeScore(*stored("gqsa", inputs, lambda: self._run(ARMS[arm], text, seed)))

    def _run(self, method: Any, text: str, seed: int) -> CodeScore:
        """Compress SmolLM2; return its loss on held-out text and its bits per weight."""
        if self.model is None:
            self.model, self.tokenizer = language_model("smollm2", progress=lambda _: None)
            self.model.requires_grad_(False).eval()
            self.dense = {n: t.clone() for n, t in self.model.state_dict().items()}
        if text not in self.rows:
            loaded = load_texts(text, self.tokenizer, length=LENGTH, progress=lambda _: None)
            self.rows[text] = loaded.train, [loaded.test[i] for i in range(HELD_OUT)]
        train, test = self.rows[text]
        # every arm begins with the dense weights
        self.model.load_state_dict(self.dense)
        draw = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        rows = [train[int(i)] for i in draw[:CALIBRATION]]
        # 2:4 at 16 bits: half of the weights, and two bits for where each stands
        bits = 32.0 if method is None else 9.0
        if isinstance(method, Gqsa):
            coded, _ = method.coded(self.model, batched(rows, 4), seed)
            stored = [c.stored() for c in coded.values()]
            if method.density == 1:  # groups that are all there need no index
                stored = [{n: s[n] for n in ("codes", "scales", "zeros")} for s in stored]
            weights = sum(c.width * len(c.raw) for c in coded.values())
            # counted from the stored tensors, indices and scales included
            bits = 8 * sum(map(nbytes, stored)) / weights
        elif method is not None:
            sparsify(self.model, method, rows, seed=seed)
        return CodeScore(nll(self.model, test), bits)


def of_order(seeds: tuple[int, ...], report: Report) -> Result:
    """Return SmolLM2's loss after GQSA minus that after 2:4 SparseGPT, in nats a token, by text.

    GQSA keeps half of the groups of 16 weights at 4 bits and then trains in two stages; SparseGPT
    keeps 2 of every 4 weights at 16 bits. The losses are on held-out rows.
    """
    cells = GqsaCells()
    sheet = each([Arm(name, name) for name in ARMS], seeds, cells.cell, report, tasks=TEXTS)

    def loss(arm: str, text: str) -> float:
        """Return the mean loss over the seeds."""
        return statistics.mean(sheet.results[arm, text, seed].nll for seed in seeds)

    table = [
        {
            "weights": arm,
            "bits": f"{sheet.results[arm, TEXTS[0], seeds[0]].bits:.2f}",
            **{text: f"{math.exp(loss(arm, text)):.1f}" for text in TEXTS},
        }
        for arm in ARMS
    ]
    note = (
        f"Perplexity of SmolLM2-135M on {HELD_OUT} rows of {LENGTH} tokens, calibrated on "
        f"{CALIBRATION} others of the same text, mean of {len(seeds)} draws. W3 is as large as "
        "half of the groups at 4 bits."
    )
    return result_of([loss(OURS, text) - loss(PAIRS, text) for text in TEXTS], table, note)


STUDIES = (
    Study(
        "gqsa",
        system="GQSA",
        arxiv="2412.17560",
        question="Does group-sparse 4 bit lose less than 2:4 at 16 bits?",
        effect=Effect(
            "accuracy above 2:4 and 2 bits; 2.35 and 1.26 times as fast",
            "4 bits and 50 % zeros, LLaMA, Qwen, OPT",
            "abstract",
            sign=-1,
        ),
        work="SmolLM2-135M, two texts, 16 calibration rows",
        baseline="2:4 by SparseGPT at 16 bits, three times as large; mean of two texts",
        unit="nats a token",
        differs="One draw of 16 calibration rows, so that the interval is over two texts.",
        measure=of_order,
        seeds=(0,),
        minutes=72,
    ),
)
