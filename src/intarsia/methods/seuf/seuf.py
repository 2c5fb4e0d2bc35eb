"""SEUF: a text is unlearned in the one expert that it belongs to (arXiv:2411.18797).

First called UOE. Unlearning in all weights of a mixture lets the router send the text to experts
that had nothing to do with it, which are then damaged, too. Here one expert and the gate of its
layer are trained, and an anchor holds the text's tokens at that expert.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.checks import above, at_least, between
from ...core.errors import ConfigError, DataError, TargetError
from ...core.modes import evaluating
from ...core.schema import check, setting
from ...data.token_batches import inputs_of
from ...hosts.attribution import BY, Attribution, attribute_experts
from ...mixtures.experts_function import StockExperts, stock_experts
from ...sparse.swap.upcycle import check_unadapted
from ...train.order import pair
from .run import At, Report, UnlearningRun

LOSSES = ("ga", "gdiff", "npo", "rmu")
OVERLAP = 0.01  # of the rows to forget that may also be among those to keep


@dataclass(frozen=True)
class Seuf:
    """Unlearning in one expert e: l_forget + retain l_retain + anchor mean_t |p_t - onehot(e)|^2.

    Trained are the expert e with the most of the text and its layer's gate; every other weight
    keeps its bits. p_t: the gate's probabilities, over tokens of the text to forget.

    unlearn(model, Seuf("npo"), forget, keep, until=1.0)
    Raises: ConfigError for settings that cannot be.
    Not for dense models, and little use where a layer's experts have equal shares of the text.
    Source: arXiv:2411.18797, equations 2 to 4.
    """

    loss: str = setting(
        "gdiff",
        'The loss l_forget, in nats a token: "ga", -CE, and no l_retain; "gdiff", -CE; "npo", '
        "(2 / (beta T)) log(1 + (pi / pi_0)^beta), pi the probability of a whole row of T "
        'tokens, pi_0 the one before; "rmu", |h - steer u|^2 / d of the layer\'s output h, u a '
        "random unit vector.",
        choices=LOSSES,
    )
    by: str = setting(
        "affinity",
        'The measure of an expert\'s part in the text: "affinity", the paper\'s, or "lift", its '
        "affinity over the one that other text gives it.",
        choices=BY,
    )
    anchor: float = setting(
        1.0, "The weight alpha of the anchor, which holds the gate at the expert.", least=0
    )
    retain: float = setting(
        1.0,
        'The weight lambda of l_retain: CE on the text to keep; with "rmu" |h - h_0|^2 / d.',
        least=0,
    )
    beta: float = setting(0.1, 'The inverse temperature beta of "npo".', above=0)
    steer: float = setting(20.0, 'The length of the vector that "rmu" steers to.', above=0)
    lr: float = setting(
        1e-3, "AdamW's learning rate, without weight decay.", above=0, fix="Try 1e-3."
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def keeps(self) -> bool:
        """The statement that the loss reads the text to keep, bool."""
        return self.loss != "ga" and self.retain > 0

    def unlearn(
        self, model: nn.Module, forget: Sequence[Any], retain: Sequence[Any] = (), **options: Any
    ) -> Unlearned:
        """Unlearn a text: call `unlearn(model, self, forget, retain, **options)`."""
        return unlearn(model, self, forget, retain, **options)


@dataclass(frozen=True)
class Unlearned:
    """Result of `unlearn`: the expert, the course of the measures, and how much was trained.

    at: (layer, expert), None for all weights.  path: at each measured step the cross-entropy of
    both texts (nats a token) and the target's share of the forgotten tokens' probability.  trained,
    total: numbers of weights.
    """

    at: At | None
    path: tuple[Mapping[str, float], ...]
    trained: int
    total: int
    attribution: Attribution | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


def unlearn(
    model: nn.Module,
    method: Seuf,
    forget: Sequence[Any],
    retain: Sequence[Any] = (),
    *,
    at: At | str | None = None,
    steps: int = 60,
    until: float | None = None,
    judge: tuple[Sequence[Any], Sequence[Any]] | None = None,
    batch_size: int = 8,
    every: int = 5,
    seed: int = 0,
    progress: Report = lambda _: None,
) -> Unlearned:
    """Unlearn a text in place, in a stock sparse model of transformers.

    model: changed in place; method: the settings; forget, retain: rows to unlearn and to keep, as
    `load_texts(...).train`, or token ids (N, T); at: (layer, expert) instead of the one with most
    of the text; "all": every weight and no anchor, which is the plain method; steps: of AdamW, at
    most; until: stop when the cross-entropy of the text to forget has risen by so many nats; judge:
    other rows of both texts to measure by, each `every` steps; None = the first ones of those
    trained on; batch_size: rows of each text in a step; seed: draws the order of rows, and RMU's
    vector; progress: gets a line of text for each measurement. The model is as before where this
    raises, Ctrl-C included.

    Raises: TargetError for a model without stock experts, or with adapters; DataError for rows
    without tokens, texts that share rows, or no text to keep where the loss reads one; ConfigError
    for an expert that is not there; TrainingError for a loss that is not finite.
    Source: arXiv:2411.18797.
    """
    for name, count in (("steps", steps), ("every", every), ("batch_size", batch_size)):
        at_least(name, count, 1)
    above("until", 1.0 if until is None else until, 0, "Try 1.0; None takes all steps.")
    layers = _check_texts(model, method, forget, retain, at is None)
    table, target = None, None
    if at is None:
        texts = [r for r in (forget, retain) if len(r)]
        device = next(model.parameters()).device
        # The expert with the largest share of the text's tokens is the target.
        table = attribute_experts(model, *(inputs_of(r, batch_size, device) for r in texts))
        target = table.best(method.by)
        # For example a lead of the expert that is no larger than chance.
        for doubt in table.doubts(target):
            warnings.warn(doubt, stacklevel=2)
    elif at != "all":
        target = _checked_place(at, layers)
    elif method.loss == "rmu":
        fix = "Give at=(layer, expert)."
        raise ConfigError("at", got="'all' with rmu", want="a layer, whose output moves", fix=fix)
    run = UnlearningRun(model, method, target, layers, seed)
    try:
        # Dropout would make the measures of two steps differ for no reason.
        with evaluating(model), run:
            path = run.walk(forget, retain, judge, steps, until, batch_size, every, progress)
    except BaseException:
        run.parts.restore()
        raise
    counts = run.parts.count, sum(p.numel() for p in model.parameters())
    return Unlearned(target, path, *counts, table, vars(method))


def _check_texts(
    model: nn.Module, method: Seuf, forget: Sequence[Any], retain: Sequence[Any], attributed: bool
) -> list[StockExperts]:
    """Check the model and both texts; return the experts of each layer."""
    check_unadapted(model)
    layers = list(stock_experts(model).values())
    if not layers:
        got = f"a {type(model).__name__} without stock experts"
        fix = "Use Mixtral, Qwen-MoE, OLMoE or another sparse model of transformers."
        raise TargetError("model to unlearn in", got=got, want="mixtures of experts", fix=fix)
    lift = attributed and method.by == "lift"
    remedies = ["loss='ga'"] * method.keeps + ["by='affinity'"] * lift
    for name, rows, required in (("forget", forget, True), ("retain", retain, bool(remedies))):
        if required and not len(rows):
            fix = "Give some rows" + (
                f", or {' and '.join(remedies)}." if name == "retain" else "."
            )
            raise DataError(f"text to {name}", got="no rows", want="some", fix=fix)
    # A row in both texts would be pulled in both directions.
    retained_rows = {_row_bytes(row) for row in retain}
    shared_rows = sum(_row_bytes(row) in retained_rows for row in forget)
    if shared_rows > OVERLAP * len(forget):
        got = f"{shared_rows} of {len(forget)} rows to forget that are also to be kept"
        fix = "Take them out of one of the two."
        raise DataError("texts", got=got, want=f"at most {OVERLAP:.0%}", fix=fix)
    return layers


def _row_bytes(row: Any) -> bytes:
    """Return the token ids of a row as bytes, by which equal rows are found."""
    # Rows are compared by their tokens, whatever their labels.
    ids = row if isinstance(row, Tensor) else pair(row)[0]["input_ids"]
    return torch.as_tensor(ids).long().cpu().numpy().tobytes()


def _checked_place(place: Any, layers: Sequence[StockExperts]) -> At:
    if not (isinstance(place, tuple) and len(place) == 2):
        raise ConfigError(
            "at", got=repr(place), want="(layer, expert), or 'all'", fix="Try (3, 7)."
        )
    between("layer", place[0], 0, len(layers) - 1)
    between("expert", place[1], 0, layers[place[0]].experts - 1)
    return int(place[0]), int(place[1])


CARD = Card(
    "seuf",
    kind="unlearning",
    config=Seuf,
    paper=Paper(
        "2411.18797",
        2024,
        "UOE: Unlearning One Expert Is Enough For Mixture-of-experts LLMS",
    ),
    summary="A text is unlearned in the one expert that it belongs to, and its layer's gate.",
    family="unlearning",
    names=("SEUF", "UOE", "unlearning one expert"),
)
