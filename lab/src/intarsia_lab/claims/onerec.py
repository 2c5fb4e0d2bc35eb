"""OneRec: a reward that the model never saw rises by preference alignment, and at which cost."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from intarsia.areas.recommend.onerec import OneRec, OneRecModel
from intarsia.areas.recommend.semantic_ids import SemanticIds, item_vectors
from intarsia.areas.recommend.session_encoder import pad_sessions
from intarsia.areas.recommend.session_reward import SessionReward
from intarsia.data.interactions import Interactions
from intarsia.fitting import fit, fit_in_phases
from intarsia.train.preference import PreferenceRounds
from intarsia.train.tasks import own_losses

from ..kit import COUNTED, Control, Effect, FixedRate, Report, Result, Study, numbers
from ..kit.arms import by_seed, judge, result_of, row_of
from ..kit.stored import StoredResults
from ..materials import film_sessions

stored = StoredResults(__file__)

USERS, SAMPLES, STEPS = 120, 24, 2  # of a round; STEPS epochs
REWARD_LR, LR, ROUND_LR = 2e-3, 1e-3, 1e-4
SUPERVISED, ROUND = "supervised", "after one round"
WHOLE, SINGLE = "a session at once", "one item after the other"


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


def of_preference(seeds: tuple[int, ...], report: Report, *, field: str, over: Any = min) -> Result:
    """Return a score after the round of alignment over the same score before it, by seed.

    field: of Aligned, such as "judge", the score by the taste of users that the policy never
    learned from; over: joins the seeds' ratios, by default to the least.
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
        lambda by_model: getattr(by_model[ROUND], field) / getattr(by_model[SUPERVISED], field),
        row_of("model", columns),
        note,
        over,
    )


def trained(settings: OneRec, train: Interactions, steps: int, seed: int) -> OneRecModel:
    """Train OneRec for about so many optimiser steps, in whole epochs.

    settings: of the model; train: logged events; steps: of 64 windows each.
    """
    model = settings.build(train, seed=seed)
    samples: Any = model.samples(train)
    # as many steps for both, since their windows differ in number
    epochs = max(1, round(steps * film_sessions.OPTIONS["batch_size"] / len(samples)))
    options: Any = film_sessions.OPTIONS | {
        "seed": seed,
        "task": model.task,
        "epochs": epochs,
        "lr": LR,
    }
    fit(model, samples, objective=own_losses, **options)
    return model


def one_by_one(model: OneRecModel, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw sessions of five films item by item, with a model that writes one item.

    Each film is read with the history before the next is drawn. model: trained on single items; x:
    histories (B, n); count: of sessions for each; generator: of the draws. Returns (B, count, 5);
    no film stands twice in a session.
    """
    # (R, n) with R = B count: a row for each session
    rows = x.repeat_interleave(count, 0)
    drawn = rows.new_zeros(len(rows), 0)
    for _ in range(film_sessions.SETTINGS.session):
        # a session at once has no film twice, either
        excluded = drawn if drawn.shape[1] else None
        new = model.generate(rows, 1, width=1, excluded=excluded, draws=generator).items[
            :, 0
        ]  # (R, 1)
        drawn = torch.cat([drawn, new], 1)
        rows = torch.cat([rows, new], 1)[:, -model.settings.history :]
    return drawn.view(len(x), count, -1)


@stored.cell
def sessions_of(seed: int) -> dict[str, float]:
    """Train OneRec on whole sessions and on single items; return a judge's score of both.

    The score is the mean reward of sessions drawn for test histories of MovieLens, by a model of
    the taste of other users. Both have as many steps. Stored and read if it was computed before.
    The keys are WHOLE and SINGLE.
    """
    train, test = film_sessions.parts()
    judge_ = taste(train, True, seed)
    rows: Any = film_sessions.SETTINGS.build(train, seed=seed).samples(train)
    # as many optimiser steps for both, although their windows differ in number
    steps = film_sessions.EPOCHS * len(rows) // film_sessions.OPTIONS["batch_size"]
    at_once = trained(film_sessions.SETTINGS, train, steps, seed)
    single = trained(replace(film_sessions.SETTINGS, session=1), train, steps, seed)
    histories, _ = windows(at_once, test)
    scores: dict[str, list[Tensor]] = {WHOLE: [], SINGLE: []}
    # histories in parts of 128, each with draws of its own
    for i, part in enumerate(histories.split(128)):
        generator = torch.Generator().manual_seed(i)
        drawn = {WHOLE: at_once.draw(part, 2, generator)}
        drawn[SINGLE] = one_by_one(single, part, 2, generator)
        for name, sessions in drawn.items():
            scores[name].append(judge_.reward(part, sessions).flatten())
    return {name: float(torch.cat(values).mean()) for name, values in scores.items()}


def of_sessions(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the judge's score of sessions written at once over its score of item by item ones.

    One ratio for each seed; the judge is a model of users' taste, see `sessions_of`.
    """
    results = by_seed(seeds, sessions_of, report)
    note = (
        "As many steps of 64 windows each; a step of the first has five times the tokens. Both "
        "learn from what was liked, and draw 2 sessions for each test window."
    )
    row = row_of("written", {"judge": ("", ".3f")})
    return judge(results, lambda by_model: by_model[WHOLE] / by_model[SINGLE], row, note)


def of_ids(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how evenly semantic ids use their codes: the least entropy of a level over log K.

    An id is three levels of residual k-means, 16 codes each, of vectors of MovieLens films;
    balanced k-means is judged, plain k-means stands next to it. One value for each seed; 1 = all
    codes alike.
    """
    train, _ = film_sessions.parts()
    vectors = item_vectors(train)
    rows: list[dict[str, Any]] = []
    values: list[float] = []
    for balanced in (True, False):
        fitted = [SemanticIds((16, 16, 16), balanced, seed).fit(vectors) for seed in seeds]
        least = [min(ids.entropies()) for ids in fitted]
        # balanced codes are judged, plain ones stand next to them
        values = values or least
        distinct = [len(np.unique(ids.codes_[:, :3], axis=0)) for ids in fitted]
        rows.append(
            {
                "codes": "balanced" if balanced else "plain",
                "entropy / log K, least level": f"{statistics.mean(least):.3f}",
                "what is left": f"{statistics.mean(ids.errors_[-1] for ids in fitted):.3f}",
                "distinct ids": f"{statistics.mean(distinct):.0f} of {len(vectors)}",
            }
        )
        report(str(rows[-1]))
    return result_of(values, rows, "Balance uses all codes alike and costs distortion.", min)


study = partial(
    Study,
    sense=">=",
    control=Control(
        "The supervised model recalls more than five films drawn at random, 0.4 %.",
        lambda rows: numbers(rows, "recall@5, %", {"model": "supervised"})[0] > 0.4,
    ),
    # epochs of 122 batches of half of the users, and of 230 of all
    rates=FixedRate(
        {"reward and judge": REWARD_LR, SUPERVISED: LR, "the round": ROUND_LR},
        {
            "reward and judge": 5 * 122,
            SUPERVISED: film_sessions.EPOCHS * 230,
            "the round": STEPS * 230,
        },
    ),
)

CLAIMS = (
    study(
        "onerec-preference",
        system="OneRec",
        unit="times the judge's score",
        scale="Lists that are shown to users: the paper raises the users' watch time.",
        effect=Effect(
            1.034,
            "table 1: the reward model's mean watch time, from .0991 to .1025; the judge here is "
            "not the reward that trained",
            null=1.0,
        ),
        work="MovieLens-100k, sessions",
        sentence="One round of preference alignment raises the score of a judge that the policy "
        "never saw (OneRec, arXiv:2502.18965; MovieLens-100k).",
        baseline="the supervised model's drawn sessions, by the judge",
        target=1.0,
        measure=partial(of_preference, field="judge"),
        needs="long",
        minutes=25,
    ),
    study(
        "onerec-price",
        sentence="It keeps 85 % of the recall of what users took (OneRec, arXiv:2502.18965; "
        "MovieLens-100k).",
        baseline="the supervised model's recall at 5, all test windows",
        target=0.85,
        measure=partial(of_preference, field="recall", over=statistics.mean),
        needs="long",
        minutes=25,
    ),
    study(
        "onerec-session",
        sentence="A judge likes sessions that are written at once no less than those of a model "
        "of the next item, applied five times (OneRec, arXiv:2502.18965; MovieLens-100k).",
        baseline="the same model of sessions of one item, as many steps; the judge's score",
        target=1.0,
        measure=of_sessions,
        needs="long",
        minutes=30,
    ),
    study(
        "onerec-ids",
        sentence="Balanced residual k-means uses all codes of each level alike (OneRec, "
        "arXiv:2502.18965; films of MovieLens-100k).",
        baseline="entropy of a level's codes over log K, the least of levels and seeds",
        target=0.995,
        control=COUNTED,
        rates=None,
        measure=of_ids,
        seeds=(0, 1, 2, 3, 4),
        minutes=2,
    ),
)
