"""Routing to the experts that will have the fewest units on, against a linear gate (MoE-X)."""

from __future__ import annotations

import platform
import tokenize
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.data.small_models import SmallModel
from intarsia.gating import RouterConfig
from intarsia.mixtures import as_wide_mlp
from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia.routers import MoeX, TopK
from intarsia.train import evaluate

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_seed, judge, row_of, threads
from ..kit.stored import StoredResults
from ..materials.code_states import STATES, library, states_of
from ..routing.kinds_of_text import (
    BATCH,
    LENGTH,
    decoder_of_experts,
    in_rows,
    learn,
    vocabulary,
)

stored = StoredResults(__file__)

EXPERTS, ACTIVE = 8, 2
GATE, WEIGHTS = "linear gate", "score of the weights"
STEPS, PROBED, LAYER = 700, 160, 2  # of the probe: steps, rows of held-out code, mixture read
CHARACTERS = 2_000_000
RELU = SmallModel(act="relu")
# thresholds of a unit, as the chess probes have them: shares of its own maximum
SHARES = tuple(tenth / 10 for tenth in range(10))  # of a unit's maximum, above which it is on
HIGH, LEAST = 0.95, 10  # precision of a unit that is believed, and tokens that show it
OURS_LEARNED = "score of the weights, temperature learned"
ROUTERS: dict[str, RouterConfig] = {
    GATE: TopK(EXPERTS, ACTIVE),
    WEIGHTS: MoeX(EXPERTS, ACTIVE),
    OURS_LEARNED: MoeX(EXPERTS, ACTIVE, tau=0.1, learn=True),
}


class Coverage(NamedTuple):
    """Scores of single units on held-out code: the mean over states of the best unit's F1, and of
    all units of high precision together.
    """

    best: float
    together: float


class Probed(NamedTuple):
    """A model of code: test loss, units of a token that are on, what single units say of states."""

    loss: float
    units: float
    coverage: float
    reconstruction: float


@lru_cache(maxsize=1)
def code() -> Code:
    """Return rows of tokens of Python's standard library, for training and for probing units.

    The last tenth of its modules is held out; for these rows there are also the states after each
    token, such as "inside a string".
    """
    # whole modules, so that states of held-out code are of files that nothing trained on
    files = [text for text in library(CHARACTERS) if _reads(text)]
    cut = round(0.9 * len(files))
    words = vocabulary(["".join(files[:cut])])
    train = in_rows(words, "".join(files[:cut]))
    ids, states = list[int](), list[np.ndarray]()
    for text in files[cut:]:
        encoding, states_of_text = words.tokenizer.encode(text), states_of(text)
        ids += encoding.ids
        # the state after a token is that after its last character
        states.append(states_of_text[[end - 1 for _, end in encoding.offsets]])
    row_count = len(ids) // LENGTH
    rows = torch.tensor(ids)[: row_count * LENGTH].view(row_count, LENGTH)
    of_rows = np.concatenate(states)[: row_count * LENGTH].reshape(row_count, LENGTH, -1)
    picked = np.linspace(0, row_count - 1, min(PROBED, row_count)).astype(int)  # from all modules
    return Code(train, rows[picked], of_rows[picked].reshape(-1, len(STATES)))


class Code(NamedTuple):
    """Rows of tokens (n, 64) to learn from and to test on; the states after each of the latter."""

    train: Tensor
    test: Tensor
    states: np.ndarray


def _reads(text: str) -> bool:
    """Return True if Python's tokenizer reads a module's text to its end."""
    try:
        states_of(text)
    except (tokenize.TokenError, SyntaxError):
        return False
    return True


def wide_units(model: nn.Module, rows: Tensor, layer: int = LAYER) -> np.ndarray:
    """Return all experts' hidden units in one mixture, (tokens, experts x hidden).

    Units of experts that a token does not have are 0, the others are weighed by the gate. model:
    with mixtures; rows: (n, T) tokens; layer: number of the mixture.
    """
    outputs: list[Tensor] = []

    def see(mixture: Any, args: Any, _: Any) -> None:
        """Record the units of one forward of the mixture."""
        x = args[0].reshape(-1, args[0].shape[-1])
        # a mixture of experts is one wide MLP with most of its units off
        outputs.append(as_wide_mlp(mixture).hidden(x, mixture.routing(x).dense()))

    mixture = list(mixtures_in(model).values())[layer]
    hook = mixture.register_forward_hook(see)
    with torch.no_grad():
        for part in rows.split(32):
            model.eval()(part)
    hook.remove()
    return torch.cat(outputs).numpy()


def thinned(units: np.ndarray, limit: int) -> np.ndarray:
    """Return the `limit` largest units of each token, the others 0.  units: (tokens, U)."""
    if limit >= units.shape[1]:
        return units
    # as many units on for both nets: the densest one would cover more by chance
    least = np.partition(units, -limit, axis=1)[:, -limit, None]
    return np.where(units >= np.maximum(least, np.finfo(units.dtype).tiny), units, 0)


def coverage(units: np.ndarray, states: np.ndarray) -> Coverage:
    """Score single hidden units as detectors of states of the code.

    units: (tokens, U); states: (tokens, S) bool. A unit is on above a share of its own maximum;
    unit and share are chosen on the first half of the tokens and scored on the second. Returns two
    means over the states that occur in both halves: the F1 of the best unit, and the F1 of all
    trusted units together, those with a precision of at least HIGH on at least LEAST tokens of the
    first half.
    """
    half = len(units) // 2
    # a state that one half never has can be neither chosen by nor scored
    states = states[:, states[:half].any(0) & states[half:].any(0)]
    maxima = units[:half].max(0)
    truth = states.astype(np.float32)
    best = np.full(truth.shape[1], -1.0), np.zeros(truth.shape[1])  # F1 chosen by, F1 scored
    any_on = np.zeros((len(units) - half, truth.shape[1]), dtype=bool)
    for share in SHARES:
        on = ((units > share * maxima) & (maxima > 0)).astype(np.float32)
        chosen_on, judged = on[:half], on[half:]
        precision, f1 = _figures(chosen_on, truth[:half])
        _, scored = _figures(judged, truth[half:])
        # step 1: the best unit of each state, on the first half
        pick = f1.argmax(1)  # of each state
        for state, unit in enumerate(pick):
            if f1[state, unit] > best[0][state]:
                best[0][state], best[1][state] = f1[state, unit], scored[state, unit]
            # step 2: units that are believed, by their precision there
            sure = (precision[state] >= HIGH) & (chosen_on.sum(0) >= LEAST)
            any_on[:, state] |= judged[:, sure].any(1)
    # step 3: a state is said to hold where any believed unit is on, on the second half
    together = [_f1_of(any_on[:, s], states[half:, s]) for s in range(truth.shape[1])]
    return Coverage(float(best[1].mean()), float(np.mean(together)))


def _figures(on: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the precision and F1 of every unit for every state, (S, U) each.

    on: (tokens, U), 1 where a unit is on; truth: (tokens, S), 1 where a state holds.
    """
    hits = truth.T @ on
    precision = hits / np.maximum(on.sum(0), 1)
    return precision, 2 * hits / np.maximum(on.sum(0) + truth.sum(0)[:, None], 1)


def _f1_of(on: np.ndarray, truth: np.ndarray) -> float:
    """Return the F1 of one detector.

    on: (tokens,) bool, where it is on; truth: (tokens,) bool, where the state holds.
    """
    return float(2 * (on & truth).sum() / max(1, on.sum() + truth.sum()))


def probed(seed: int, steps: int) -> dict[str, Probed]:
    """Train a model of code under each router; return how well single units tell states.

    A model is read with as many active units per token as the sparsest of the three has. steps: of
    training. Results are by name of ROUTERS, stored and read if they were computed before.
    """

    def run() -> dict[str, Any]:
        """Train a model of code under each router; return scores of their hidden units."""
        data, nets = code(), dict[str, nn.Module]()
        draws = torch.Generator().manual_seed(seed)
        rows = data.train[torch.randint(len(data.train), (steps * BATCH,), generator=draws)]
        for name, router in ROUTERS.items():
            # the same rows and steps for all routers
            nets[name] = decoder_of_experts(router, seed, shape=RELU)
            learn(nets[name], TensorDataset(rows, rows), seed)
        units = {name: wide_units(net, data.test) for name, net in nets.items()}
        on = {name: float((u != 0).sum(1).mean()) for name, u in units.items()}
        # the sparsest net sets how many units count
        test, limit = TensorDataset(data.test, data.test), max(1, int(min(on.values())))
        probes: dict[str, Any] = {}
        for name, net in nets.items():
            scores_of_units = coverage(thinned(units[name], limit), data.states)
            loss = evaluate(net, test, batch_size=64).loss
            probes[name] = Probed(
                loss, on[name], scores_of_units.best, scores_of_units.together
            )._asdict()
        return probes

    inputs = {"seed": seed, "steps": steps, "routers": repr(ROUTERS), "states": list(STATES)}
    inputs |= {"sizes": [CHARACTERS, PROBED, LAYER], "python": platform.python_version()}
    with threads(1):
        probes = stored("moe-x-probe", inputs, run)
    return {name: Probed(**fields) for name, fields in probes.items()}


def probe(seeds: Sequence[int], report: Report, *, steps: int = STEPS) -> Result:
    """Return the coverage of MoE-X's hidden units minus that of a linear gate's, by seed.

    Models of Python code are trained under each router; units are detectors of states such as
    "inside a string", see `coverage`. steps: of training.
    """
    # three routers are probed, two are compared; the third has a fixed temperature
    results = by_seed(seeds, lambda seed: probed(seed, steps), report)
    note = (
        f"Modules of the standard library; decoders of four layers from scratch, {EXPERTS} experts "
        f"of {RELU.hidden} units with ReLU, {ACTIVE} a token, {steps} steps of {BATCH} rows of "
        f"{LENGTH} tokens. {len(STATES)} states ({', '.join(STATES)}) after each token of held-out "
        f"modules, of which those count that occur there. Units of layer {LAYER + 1}, "
        "weighed by their expert's gate, of each token as many as the sparsest of the three "
        "models has on, the largest ones. Unit and threshold are chosen on half of the tokens "
        "and scored on the other."
    )
    return judge(
        results, lambda nets: nets[OURS_LEARNED].coverage - nets[GATE].coverage, PROBE_ROW, note
    )


PROBE_ROW = row_of(
    "router",
    {
        "coverage": ("coverage", ".4f"),
        "reconstruction": ("reconstruction", ".4f"),
        "units on": ("units", ".1f"),
        "test loss": ("loss", ".3f"),
    },
)

BASELINE = "a linear gate over the same ReLU experts, top-2 of 8"


STUDIES = (
    Study(
        "moe-x-probe",
        system="MoE-X",
        arxiv="2503.07639",
        question="Are units of experts routed by their weights better detectors?",
        effect=Effect(
            "coverage .428 against .418 of the same experts with a linear gate",
            "chess",
            "tables 2 to 4",
            sign=1,
            values=(0.010,),
        ),
        work="decoders of four layers from scratch on Python code",
        baseline=BASELINE,
        unit="of coverage, the mean F1 of the best single units",
        differs="Brackets, strings and indentation stand in for a chess board.",
        measure=probe,
        minutes=12,
    ),
)
