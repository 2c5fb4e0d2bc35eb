"""What sequence models are held against: Cornac's SASRec, GRU4Rec and TIGER, and neighbours.

Each has a few settings, and the best on validation questions is taken, as for the method that is
compared with it: as many for all of them, rates among them. Cornac is an extra (`pip install
'intarsia[baselines]'`); neighbours are ten lines of scipy.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from intarsia.areas.recommend.semantic_ids import item_vectors
from intarsia.core.errors import MissingExtra
from intarsia.data.interactions import Interactions

from ..kit import ArmRate, Rates
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

Scorer = Callable[[Tensor], Tensor]  # histories (B, n), places from 1, 0 = none -> (B, items + 1)
Settings = Mapping[str, Any]
Spans = Sequence[tuple[int, int]]  # of sessions, in the rows of events
Make = Callable[[Interactions, Spans, Settings, int], Scorer]  # training events, ..., seed

SASREC, GRU4REC, TIGER, NEIGHBOURS, POPULAR = (
    *("SASRec (Cornac)", "GRU4Rec (Cornac)", "TIGER (Cornac)", "item-kNN", "popularity"),
)
LAST = 20  # items of a history that the baselines read


def cornac_set(events: Interactions, spans: Spans) -> Any:
    """Convert sessions to Cornac's data set, in which an item's number is its index.

    events: of all users; spans: (first, end) row of each session's events.
    Raises: MissingExtra without cornac.
    """
    try:
        from cornac.data.dataset import SequentialDataset
    except ImportError as error:
        raise MissingExtra("cornac", "baselines") from error
    # user, session, item, time
    rows = [
        (int(events.users[i]), number, int(events.items[i]), i)
        for number, (first, end) in enumerate(spans)
        for i in range(first, end)
    ]
    places = OrderedDict((i, i) for i in range(len(events.item_ids)))
    return SequentialDataset.build(rows, fmt="USIT", global_iid_map=places)


def scorer_of(model: Any) -> Scorer:
    """Return a function that scores all items for histories by a model of Cornac.

    It takes histories (B, n), items from 1 and 0 = none, and returns (B, items + 1).
    """

    def scores(x: Tensor) -> Tensor:
        """Return the scores of all items for histories x (B, n); item 0 has minus infinity."""
        # Cornac counts items from 0, and reads the newest ones
        rows = [model.score(None, [i - 1 for i in row if i][-LAST:]) for row in x.tolist()]
        values = torch.from_numpy(np.stack(rows)).float()
        return torch.nn.functional.pad(values, (1, 0), value=-torch.inf)

    return scores


def sasrec(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Train SASRec (arXiv:1808.09781), self-attention over items' vectors; return its scorer.

    events: of all users; spans: sessions to learn from; settings: Cornac's; seed: of the training.
    """
    data = cornac_set(events, spans)
    from cornac.models.sasrec import SASRec

    model = SASRec(seed=seed, max_len=LAST, batch_size=256, **_cornac(settings))
    return scorer_of(model.fit(data))


def gru4rec(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Train GRU4Rec (arXiv:1511.06939), a recurrent net over a session; return its scorer.

    Its loss is the cross-entropy over the batch's and 2,048 other items. events: of all users;
    spans: sessions to learn from; settings: Cornac's; seed: of the training.
    """
    data = cornac_set(events, spans)
    from cornac.models.gru4rec import GRU4Rec

    return scorer_of(GRU4Rec(seed=seed, batch_size=64, **_cornac(settings)).fit(data))


def tiger(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Train TIGER (arXiv:2305.05065), which decodes the next item's semantic id; return its scorer.

    Ids are residual k-means of `item_vectors`, as OneRec's; items that no beam reaches have
    the score -1e10. events: of all users; spans: sessions to learn from; settings: Cornac's; seed:
    of the training.
    """
    data = cornac_set(events, spans)
    from cornac.data.modality import FeatureModality
    from cornac.models.tiger import TIGER as Tiger

    data.add_modalities(item_feature=FeatureModality(item_vectors(events)))
    options = {"tokenizer": "rkmeans", "n_beams": LAST, "max_len": LAST, "device": "cpu"}
    return scorer_of(Tiger(seed=seed, **options, **_cornac(settings)).fit(data))


def _cornac(settings: Settings) -> dict[str, Any]:
    """Return settings in which "lr" has Cornac's name for it."""
    return {"learning_rate" if name == "lr" else name: value for name, value in settings.items()}


def neighbours(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Return a scorer that ranks items by how often they share sessions with a history's items.

    score_j = sum_t decay^(n - t) |S_t and S_j| / (sqrt(|S_t| |S_j|) + shrink), with S_j the
    sessions that have item j and t = 1 ... n the items of the history; later ones weigh more.
    events: of all users; spans: sessions to learn from; settings: decay and shrink; seed: unused,
    nothing is drawn.
    """
    rows = np.repeat(np.arange(len(spans)), [end - first for first, end in spans])
    items = np.concatenate([events.items[first:end] for first, end in spans]) + 1
    shape = len(spans), len(events.item_ids) + 1
    # sessions by items; item 0 is none
    counts: Any = sp.csr_matrix((np.ones(len(rows)), (rows, items)), shape)
    present = counts.sign()  # once or several times
    both = (present.T @ present).toarray()  # (items + 1, items + 1) sessions with both
    norm = np.sqrt(both.diagonal())
    np.fill_diagonal(both, 0)
    # the cosine of two items' sessions, shrunk for rare items
    alike = both / np.maximum(np.outer(norm, norm) + settings["shrink"], 1e-9)
    table = torch.from_numpy(alike).float()

    def scores(x: Tensor) -> Tensor:
        """Return the scores of all items for histories x (B, n), (B, items + 1)."""
        from_end = torch.arange(x.shape[1] - 1, -1, -1)
        weights = (x > 0) * settings["decay"] ** from_end
        return torch.einsum("bn,bni->bi", weights, table[x])

    return scores


def popular(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Return a scorer that ranks items by their number of events.

    spans, settings, seed: unused; other baselines need them.
    """
    counts = torch.from_numpy(np.append(0, events.popularity())).float()
    return lambda x: counts.expand(len(x), -1)


MAKES: Mapping[str, Make] = {
    SASREC: sasrec,
    GRU4REC: gru4rec,
    TIGER: tiger,
    NEIGHBOURS: neighbours,
    POPULAR: popular,
}


def grid(settings: Settings, **several: Sequence[Any]) -> list[Settings]:
    """Return a copy of `settings` for each combination of some values.

    several: name -> the values to try.
    """
    rows = itertools.product(*several.values())
    return [{**settings, **dict(zip(several, row, strict=True))} for row in rows]


def tuned(
    name: str,
    inputs: Mapping[str, Settings],
    grids: Mapping[str, Sequence[Settings]],
    rates: Rates,
    score: Callable[[str, Settings], float],
) -> tuple[dict[str, Settings], tuple[ArmRate, ...]]:
    """Choose settings and learning rate of each method by validation.

    name: of the cache's group; inputs: method -> what its results depend on; grids: method ->
      settings to try, without the rate; rates: grids of learning rates, a method that is not in it
      has none; score: (method, settings) -> validation score, higher is better. Returns method ->
      best settings, and the chosen rates.
    """

    def scored(arm: str, settings: Settings) -> float:
        """Return the validation score of a method with settings, from the cache or by training."""
        key = {**inputs[arm], "tried": settings}
        return stored(name, key, partial(score, arm, settings))

    def best(arm: str, extra: Settings) -> Settings:
        """Return the best of a method's settings, with `extra` (a learning rate) added to each."""
        options = [{**settings, **extra} for settings in grids[arm]]
        return options[0] if len(options) == 1 else max(options, key=partial(scored, arm))

    # a rate is as good as the best of the other settings makes it
    arm_rates = rates.choose(lambda arm, lr: scored(arm, best(arm, {"lr": lr})))
    extras = {rate.arm: {"lr": rate.rate} for rate in arm_rates}
    return {arm: best(arm, extras.get(arm, {})) for arm in grids}, arm_rates
