"""OneRec's next item against TIGER, which writes semantic ids of one item, and SASRec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intarsia.core.modes import evaluating
from intarsia.data.interactions import Interactions
from intarsia.fitting import fit
from intarsia.train.tasks import own_losses

from ..kit import Rates, Report, Result, Study, above
from ..kit.arms import by_arm, judge, row_of
from ..kit.stored import StoredResults
from ..materials.film_sessions import EPOCHS, OPTIONS, SETTINGS, parts
from ..materials.sequence_baselines import (
    LAST,
    MAKES,
    NEIGHBOURS,
    POPULAR,
    SASREC,
    TIGER,
    Scorer,
    Settings,
    grid,
    tuned,
)

stored = StoredResults(__file__)

ONEREC, DEEP = "OneRec", 10
WHOLE = 1e12  # seconds: all events of a user are one history
# validation is the last tenth in time of each user: no question from the future
HELD_OUT = 0.1  # of each user's training events, for validation
NARROW = {"d_model": 64, "d_ff": 128, "num_heads": 4, "d_kv": 16}  # as wide as OneRec
DEEPER = {"num_enc_layers": 2, "num_dec_layers": 2, "n_epochs": 8, "rqvae_codebook_size": 16}
GRIDS: Mapping[str, list[Settings]] = {  # three settings each, the rates of those that train
    ONEREC: [{}],
    TIGER: [NARROW | DEEPER],
    SASREC: [{"embedding_dim": 64, "num_blocks": 2, "n_epochs": 10}],
    NEIGHBOURS: grid({"shrink": 20.0}, decay=(1.0, 0.95, 0.9)),
    POPULAR: [{}],
}
# 14,663 windows of 64; of Cornac 78,847 next films of 256 for TIGER, 943 users for SASRec
RATES = Rates((3e-4, 1e-3, 3e-3), {ONEREC: EPOCHS * 230, TIGER: 8 * 308, SASREC: 10 * 4})
Rank = Callable[[Tensor], Tensor]  # histories (B, n) -> places (B, 10), best first


class NextFound(NamedTuple):
    """Scores of the next film, in percent: nDCG at 10 and hit rate at 10.

    Films of the history are left out.
    """

    ndcg: float
    hits: float


def early_and_late(train: Interactions) -> tuple[Interactions, Interactions]:
    """Split each user's training events by time into the first nine tenths and the last tenth.

    The last tenth chooses settings, so that no test event does.

    train: the events, sorted by user and time.
    """
    counts = np.bincount(train.users, minlength=len(train.user_ids))
    # place: the number of an event among its user's events, which lie together
    place = np.arange(len(train)) - (counts.cumsum() - counts)[train.users]
    early = place + 1 <= counts[train.users] * (1 - HELD_OUT)
    return train.rows(early), train.rows(~early)


def questions(events: Interactions, before: Interactions) -> tuple[Tensor, Tensor]:
    """Return histories (N, 20) and the next film (N,), for every fifth event of a user.

    events: those that are asked for; before: earlier events of the same users, which are in the
    histories. Films are numbered from 1; 0 is padding.
    """
    x: list[Any] = []
    y: list[int] = []
    # every fifth event: OneRec writes sessions of five
    for old, new in zip(before.histories(), events.histories(), strict=True):
        items = np.concatenate([old, new]) + 1
        for position in range(len(old), len(items), SETTINGS.session):
            if position:
                x.append(items[max(0, position - LAST) : position])
                y.append(int(items[position]))
    rows = torch.zeros(len(x), LAST, dtype=torch.int64)
    for row, history in zip(rows, x, strict=True):
        row[LAST - len(history) :] = torch.from_numpy(history)
    return rows, torch.tensor(y)


def ranked(rank: Rank, x: Tensor, y: Tensor) -> NextFound:
    """Return nDCG@10 and hit rate at 10 of a recommender, in percent.

    rank: histories (B, 20) -> the 10 best films (B, 10); x: histories; y: the right film of each.
    With one right film the gain is 1 / log2(1 + rank).
    """
    top = torch.cat([rank(part) for part in x.split(256)])  # (N, 10)
    hit = top == y[:, None]
    gain = torch.tensor([1 / math.log2(place + 2) for place in range(top.shape[1])])
    return NextFound(
        100 * float((hit * gain).sum(1).mean()), 100 * float(hit.sum(1).float().mean())
    )


def of_scores(score: Scorer) -> Rank:
    """Return a function that ranks films by their scores, without the films of the history.

    score: histories (B, 20) -> scores of all films (B, films + 1).
    """

    def rank(x: Tensor) -> Tensor:
        """Return the 10 best films, (B, 10).  x: histories (B, 20)."""
        # films of the history cannot be the next one, for no method
        scores = score(x).clone().scatter(1, x, -torch.inf)
        scores[:, 0] = -torch.inf
        return scores.topk(DEEP).indices

    return rank


def onerec(train: Interactions, settings: Settings, seed: int) -> Rank:
    """Train OneRec; return a function that ranks films by the first film of its sessions.

    train: logged events; settings: the learning rate.
    """
    model = SETTINGS.build(train, seed=seed)
    options: Any = OPTIONS | {"seed": seed, "epochs": EPOCHS, "task": model.task}
    fit(model, model.samples(train), objective=own_losses, lr=settings["lr"], **options)

    def rank(x: Tensor) -> Tensor:
        """Return the first films of the 10 likeliest beams, (B, 10).  x: histories (B, 20)."""
        with evaluating(model):
            return model.generate(x, 1, width=DEEP, excluded=x).items[:, :, 0]

    return rank


def made(arm: str, train: Interactions, settings: Settings, seed: int) -> Rank:
    """Train a method on events and return its ranking function.

    arm: key of GRIDS; settings: the method's, as they were chosen on validation data.

    train: logged events.
    """
    if arm == ONEREC:
        return onerec(train, settings, seed)
    # baselines learn from whole histories, which they are given in the test
    spans = train.sessions(WHOLE, longest=len(train)).spans
    return of_scores(MAKES[arm](train, spans, settings, seed))


def compared(seeds: tuple[int, ...], report: Report, *, figure: Any) -> Result:
    """Tune and train methods for the next film on MovieLens; return a figure of their scores.

    The methods are the keys of GRIDS: OneRec, TIGER, SASRec, nearest neighbours and popularity,
    each with three settings tried on the last tenth of every user's training events. figure: scores
    of one seed by method -> the number to judge, such as a ratio of nDCG@10.
    """
    train, test = parts()
    inputs = {arm: {"next": arm, "epochs": EPOCHS, "model": repr(SETTINGS)} for arm in GRIDS}

    def validated(arm: str, settings: Settings) -> float:
        """Return nDCG@10 on the last tenth of the training events."""
        early, late = early_and_late(train)
        return ranked(made(arm, early, settings, 0), *questions(late, early)).ndcg

    # step 1: each method's settings, with seed 0
    best, arm_rates = tuned("onerec", inputs, GRIDS, RATES, validated)

    def work(arm: str, seed: int) -> NextFound:
        """Return a tuned method's test scores for a seed, stored or computed now."""

        def run() -> list[float]:
            return list(ranked(made(arm, train, best[arm], seed), *questions(test, train)))

        key = {**inputs[arm], "settings": best[arm], "seed": seed}
        return NextFound(*stored("onerec", key, run))

    # step 2: the test, with these settings and every seed
    results = by_arm({name: name for name in GRIDS}, seeds, work, report)
    columns = {"nDCG@10, %": ("ndcg", ".2f"), "hit rate at 10, %": ("hits", ".2f")}
    note = (
        "All films but those of the history are ranked; it has the last 20. Of each method but "
        "popularity three settings are tried on the last tenth of the users' training events. "
        "TIGER's ids are k-means of the same vectors, 3 levels of 16. OneRec learns to write "
        "sessions that were liked, the others every next film."
    )
    return judge(results, figure, row_of("method", columns), note, rates=arm_rates)


CLAIMS = (
    Study(
        "onerec-tiger",
        sentence="The first film of a session that OneRec writes is as good a next film as "
        "TIGER's, at least 0.95 of it (OneRec, arXiv:2502.18965; MovieLens-100k).",
        baseline="Cornac's TIGER over ids of the same vectors, nDCG at 10, both tuned",
        target=0.95,
        sense=">=",
        control=above("TIGER, tuned, is above a random order of the films.", "nDCG@10, %", 0.4),
        rates=RATES,
        measure=partial(compared, figure=lambda rates: rates[ONEREC].ndcg / rates[TIGER].ndcg),
        needs="long",
        minutes=220,
    ),
)
