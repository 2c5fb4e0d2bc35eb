"""OneRec: a reward that the model never saw rises by preference alignment, and at which cost."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intarsia.areas.recommend.onerec import OneRecModel
from intarsia.areas.recommend.session_encoder import pad_sessions
from intarsia.areas.recommend.session_reward import SessionReward
from intarsia.data.interactions import Interactions
from intarsia.fitting import fit, fit_in_phases
from intarsia.train.preference import PreferenceRounds
from intarsia.train.tasks import own_losses

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_seed, judge, row_of
from ..kit.stored import StoredResults
from ..materials import film_sessions

stored = StoredResults(__file__)

USERS, SAMPLES, STEPS = 120, 24, 2  # of a round; STEPS epochs
REWARD_LR, LR, ROUND_LR = 2e-3, 1e-3, 1e-4
SUPERVISED, ROUND = "supervised", "after one round"


class Aligned(NamedTuple):
    """The judge's and the reward's score of drawn sessions; recall of logged likes in percent.

    coverage: share of the films that are drawn; repeats: films of the history in a session;
    twice: films that stand twice in a session.
    """

    judge: float
    reward: float
    recall: float
    coverage: float
    repeats: float
    twice: float


def windows(model: OneRecModel, events: Interactions) -> tuple[Tensor, Tensor]:
    """Return the histories and the films watched next of logged events, as numbers of films.

    Histories are (N, history), padded with 0; the next sessions are (N, 5).

    model: has the lengths of both; events: logged, by user and time.
    """
    rows: Any = model.questions(events)
    both = [rows[i] for i in range(len(rows))]
    return pad_sessions([h for h, _ in both], film_sessions.SETTINGS.history), torch.stack(
        [s for _, s in both]
    )


def taste(events: Interactions, odd: bool, seed: int) -> SessionReward:
    """Fit a model of users' taste that scores sessions, on half of the users.

    odd: fit the judge, on odd users, which is larger; else the reward that the policy is trained
    on, on even users; seed: of the fit. The policy must not be judged by the reward that it was
    trained to please.

    events: logged, by which the taste is learned.
    """
    count = len(events.item_ids)
    # the judge is larger and has other users, or the policy would be scored by its own reward
    width, layers = (48, 2) if odd else (32, 1)
    model = SessionReward(
        count, film_sessions.SETTINGS, width=width, layers=layers, seed=seed + 77 * odd + 11
    )
    rows = model.rows(events.rows(events.users % 2 == odd))
    options: Any = {"epochs": 5, "lr": REWARD_LR, "weight_decay": 0.02, "seed": seed + 77 * odd}
    fit(model, rows, task=model.task, **film_sessions.OPTIONS | options)
    return model


def seen_by(
    model: OneRecModel,
    reward: SessionReward,
    judge_: SessionReward,
    windows_and_targets: tuple[Tensor, Tensor],
) -> Aligned:
    """Score sessions that a model draws: by two models of taste, by recall and by variety.

    reward: the taste that the model was trained on; judge_: the taste of other users, which only
    judges; windows_and_targets: histories (N, history), and the films that users took next (N, 5).
    Two sessions are drawn for each history; recall and repeats are of the first.
    """
    histories, logged = windows_and_targets
    drawn = torch.cat(
        [
            model.draw(part, 2, torch.Generator().manual_seed(i))
            for i, part in enumerate(histories.split(128))
        ]
    )
    first = drawn[:, 0]
    # recall of what users took: a reward must not be bought with it
    hit = (logged[:, :, None] == first[:, None, :]).any(2).float().mean()
    # a policy that repeats the history may please a reward, too
    again = (first[:, :, None] == histories[:, None, :]).any(2).sum(1).float().mean()
    twice = [len(row) - len(set(row)) for row in drawn.flatten(0, 1).tolist()]
    return Aligned(
        float(judge_.reward(histories, drawn).mean()),
        float(reward.reward(histories, drawn).mean()),
        100 * float(hit),
        len(drawn.unique()) / len(film_sessions.films().item_ids),
        float(again),
        statistics.mean(twice),
    )


def found_of(seed: int) -> dict[str, Aligned]:
    """Return the scores of a seed's model before and after its round of preference alignment.

    They are stored, and read if they were computed before.
    """
    inputs = {
        "seed": seed,
        "epochs": film_sessions.EPOCHS,
        "settings": repr(film_sessions.SETTINGS),
    }
    rows = stored("onerec", inputs, lambda: [list(scores) for scores in aligned(seed)])
    return {n: Aligned(*row) for n, row in zip((SUPERVISED, ROUND), rows, strict=True)}


def aligned(seed: int) -> tuple[Aligned, Aligned]:
    """Train OneRec on MovieLens sessions, then align it with a reward for one round; score both.

    OneRec writes a session of five films from a history. In the round, the best and the worst of 24
    drawn sessions, by the reward, form a pair for DPO. Returns the scores of test windows before
    and after the round.
    """
    train, test = film_sessions.parts()
    model = film_sessions.SETTINGS.build(train, seed=seed)
    reward, judge_ = taste(train, False, seed), taste(train, True, seed)
    samples = model.samples(train)
    options: Any = film_sessions.OPTIONS | {"seed": seed, "task": model.task}
    # step 1: supervised, on sessions that were liked
    fit(model, samples, objective=own_losses, epochs=film_sessions.EPOCHS, lr=LR, **options)
    test_windows = windows(model, test)
    before = seen_by(model, reward, judge_, test_windows)
    histories, _ = windows(model, train)
    # step 2: of SAMPLES drawn sessions the best and the worst are a pair
    rounds = PreferenceRounds(reward.reward, histories, users=USERS, samples=SAMPLES)
    # step 3: a tenth of the rate, since a pair's loss has no minimum
    fit_in_phases(model, rounds, samples, objective=rounds, epochs=STEPS, lr=ROUND_LR, **options)
    return before, seen_by(model, reward, judge_, test_windows)


def of_preference(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the judge's score after the round of alignment over its score before it, by seed.

    The judge scores by the taste of users that the policy never learned from.
    """
    results = by_seed(seeds, found_of, report)
    # the reward that was climbed stands next to the judge, and recall and variety next to both:
    # a gain that costs them is no gain
    columns = {
        "judge": ("judge", ".3f"),
        "reward": ("reward", ".3f"),
        "recall@5, %": ("recall", ".2f"),
        "coverage": ("coverage", ".3f"),
        "films of the history": ("repeats", ".2f"),
        "films twice": ("twice", ".2f"),
    }
    note = (
        "The reward is fitted on the even users, the judge, of another size and seed, on the odd "
        "ones; they share films. Sessions are drawn, films of the history may come again."
    )
    return judge(
        results,
        lambda by_model: by_model[ROUND].judge / by_model[SUPERVISED].judge,
        row_of("model", columns),
        note,
    )


STUDIES = (
    Study(
        "onerec-preference",
        system="OneRec",
        arxiv="2502.18965",
        question="Does a round of preference alignment raise a judge's score?",
        effect=Effect(
            "mean watch time .0991 to .1025, online +1.68 %",
            "a model of a billion weights, by its own reward model",
            "tables 1 and 2",
            sign=1,
            values=(1.034,),
            null=1.0,
        ),
        work="MovieLens-100k, sessions",
        baseline="the supervised model's drawn sessions",
        unit="times the judge's score",
        differs="The judge is not the reward that trained, and no list was shown to users.",
        measure=of_preference,
        minutes=16,
    ),
)
