"""What sequence models are held against: Cornac's SASRec, GRU4Rec and TIGER, and neighbours.

Each has a few settings, of which the best on validation questions is taken, as of the method beside
it: as many for all of them, rates among them. Cornac is an extra (`pip install
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

from intarsia.core.errors import MissingExtra
from intarsia.data.interactions import Interactions
from intarsia.models.recommend.semantic_ids import item_vectors

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

    events: of all users; spans: (first, last) event of each session.
    Raises: MissingExtra without cornac.
    """
    try:
        from cornac.data.dataset import SequentialDataset
    except ImportError as error:
        raise MissingExtra("cornac", "baselines") from error
    rows = [
        (int(events.users[i]), number, int(events.items[i]), i)
        for number, (first, end) in enumerate(spans)
        for i in range(first, end)
    ]
    places = OrderedDict((i, i) for i in range(len(events.item_ids)))
    return SequentialDataset.build(rows, fmt="USIT", global_iid_map=places)


def scorer_of(model: Any) -> Scorer:
    """Return a model of Cornac as one that reads histories."""

    def scores(x: Tensor) -> Tensor:
        rows = [model.score(None, [i - 1 for i in row if i][-LAST:]) for row in x.tolist()]
        values = torch.from_numpy(np.stack(rows)).float()
        return torch.nn.functional.pad(values, (1, 0), value=-torch.inf)

    return scores


def sasrec(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Build self-attention over items' vectors (SASRec, arXiv:1808.09781)."""
    data = cornac_set(events, spans)
    from cornac.models.sasrec import SASRec

    model = SASRec(seed=seed, max_len=LAST, batch_size=256, **_cornac(settings))
    return scorer_of(model.fit(data))


def gru4rec(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Build GRU4Rec (arXiv:1511.06939): cross-entropy over the batch's and 2,048 other items."""
    data = cornac_set(events, spans)
    from cornac.models.gru4rec import GRU4Rec

    return scorer_of(GRU4Rec(seed=seed, batch_size=64, **_cornac(settings)).fit(data))


def tiger(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Build TIGER (arXiv:2305.05065), which decodes the next item's semantic id.

    Ids are residual k-means of `item_vectors`, which OneRec's are, too; of items that no beam
    reaches the score is -1e10.
    """
    data = cornac_set(events, spans)
    from cornac.data.modality import FeatureModality
    from cornac.models.tiger import TIGER as Tiger

    data.add_modalities(item_feature=FeatureModality(item_vectors(events)))
    options = {"tokenizer": "rkmeans", "n_beams": LAST, "max_len": LAST, "device": "cpu"}
    return scorer_of(Tiger(seed=seed, **options, **_cornac(settings)).fit(data))


def _cornac(settings: Settings) -> dict[str, Any]:
    """Return settings with the rate under Cornac's name for it."""
    return {"learning_rate" if name == "lr" else name: value for name, value in settings.items()}


def neighbours(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Rank items by the cosine of their sessions with those of a history; later items weigh more.

    score_j = sum_t decay^(n - t) |S_t and S_j| / (sqrt(|S_t| |S_j|) + shrink), S the sessions of an
    item.  settings: decay, shrink.
    """
    rows = np.repeat(np.arange(len(spans)), [end - first for first, end in spans])
    items = np.concatenate([events.items[first:end] for first, end in spans]) + 1
    shape = len(spans), len(events.item_ids) + 1
    counts: Any = sp.csr_matrix((np.ones(len(rows)), (rows, items)), shape)
    present = counts.sign()  # once or several times
    both = (present.T @ present).toarray()  # (items + 1, items + 1) sessions with both
    norm = np.sqrt(both.diagonal())
    np.fill_diagonal(both, 0)
    alike = both / np.maximum(np.outer(norm, norm) + settings["shrink"], 1e-9)
    table = torch.from_numpy(alike).float()

    def scores(x: Tensor) -> Tensor:
        from_end = torch.arange(x.shape[1] - 1, -1, -1)
        weights = (x > 0) * settings["decay"] ** from_end
        return torch.einsum("bn,bni->bi", weights, table[x])

    return scores


def popular(events: Interactions, spans: Spans, settings: Settings, seed: int) -> Scorer:
    """Return items by their events."""
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
    """Settings with each combination of some values."""
    rows = itertools.product(*several.values())
    return [{**settings, **dict(zip(several, row, strict=True))} for row in rows]


def tuned(
    name: str,
    inputs: Mapping[str, Settings],
    grids: Mapping[str, Sequence[Settings]],
    rates: Rates,
    score: Callable[[str, Settings], float],
) -> tuple[dict[str, Settings], tuple[ArmRate, ...]]:
    """Return the settings of each method that score highest on validation, and the chosen rates.

    inputs: of each method, for its cells of `name`.  grids: its settings but the rate; a method
    that is not in `rates` has none.  score: a method and its settings -> higher is better.
    """

    def scored(arm: str, settings: Settings) -> float:
        key = {**inputs[arm], "tried": settings}
        return stored(name, key, partial(score, arm, settings))

    def best(arm: str, extra: Settings) -> Settings:
        options = [{**settings, **extra} for settings in grids[arm]]
        return options[0] if len(options) == 1 else max(options, key=partial(scored, arm))

    # a rate is as good as the best of the other settings makes it
    arm_rates = rates.choose(lambda arm, lr: scored(arm, best(arm, {"lr": lr})))
    extras = {rate.arm: {"lr": rate.rate} for rate in arm_rates}
    return {arm: best(arm, extras.get(arm, {})) for arm in grids}, arm_rates
