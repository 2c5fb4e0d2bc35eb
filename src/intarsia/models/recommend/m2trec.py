"""M2TRec: sessions of items that are known by their metadata only (arXiv:2209.11824)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...core import Card, Paper
from ...core.checks import at_least, below_one, one_of
from ...core.errors import ConfigError, UnknownName
from ...core.modes import evaluating
from ...data.interactions import SEVERAL, Interactions, ItemField
from ...train.tasks import NextItem
from .item_fields import WORDS, FieldVectors, IdVectors
from .recommender import Recommender, Settings, grown
from .session_encoder import SessionEncoder, padded

POOLS = ("mean", "last")
LARGE, SAMPLED = 50_000, 500  # items above which the softmax is over a sample, and its size
K = 20


@dataclass(frozen=True)
class M2TRec(Settings):
    """The next item of a session, each item a function of its metadata: L = CE_item + w sum_t L_t.

    e_i = MLP of the concatenated fields of item i (no id), h = mean or last state of a Transformer
    over the session, item scores h e_j; a head for each task t predicts a field of the next item,
    by cross-entropy where an item has one word, else by binary cross-entropy.  Every place of a
    session is learned from in one causal pass.  The softmax is over the items that have an event:
    one without would only be pushed away.  Above 50,000 items it is over those of the batch and
    500 others, each with -log of its chance of being there.

    tasks: names of fields, None = every field of words that the items have; weight: w.
    without: fields that are not read, as a year that gives away what is popular.
    width, layers, dropout: of the Transformer; pool: "mean" or "last"; longest: items of a session.

    model = M2TRec(tasks=("class",)).build(data)
    Raises: ConfigError on a setting that cannot be; in `build` DataError without fields,
    UnknownName for a field that is not there.
    Not for catalogues whose metadata tell items apart badly: equal metadata are equal scores. Where
    only new items compete, nearest neighbours by TF-IDF find more.
    Source: paper, section 3, where w is not told (ours: 1); the mean over a causal encoder's
    states, in the place of one pass for each prefix, is ours.
    """

    tasks: tuple[str, ...] | None = None
    weight: float = 1.0
    without: tuple[str, ...] = ()
    width: int = 64
    layers: int = 2
    pool: str = "mean"
    dropout: float = 0.2
    longest: int = 50

    data_of: ClassVar[str] = "sessions"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 12, "batch_size": 64, "lr": 2e-3, "weight_decay": 1e-4}
    )

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)
        one_of("pool", self.pool, POOLS)
        below_one("dropout", self.dropout)
        at_least("layers", self.layers, 1)
        at_least("longest", self.longest, 1)

    @property
    def reads(self) -> int:
        """The items of `longest`."""
        return self.longest

    def build(self, data: Interactions, *, seed: int = 0) -> M2TRecModel:
        for name in (*(self.tasks or ()), *self.without):
            if name not in data.fields:
                raise UnknownName("item field", name, data.fields)
        generator = torch.Generator().manual_seed(seed)
        fields = {n: f for n, f in data.fields.items() if n not in self.without}
        vectors = FieldVectors(fields, self.width, generator=generator)
        return M2TRecModel(self, data, vectors, generator=generator)


class M2TRecModel(Recommender):
    """The model of `M2TRec`: sessions (B, n), places of items from 1, 0 on the left.

    items: vectors of all items, by fields or, for comparison, by ids.
    """

    takes_items = explains = True
    settings: M2TRec

    def __init__(
        self,
        settings: M2TRec,
        known: Interactions,
        items: FieldVectors | IdVectors,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(settings, known)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.encoder = SessionEncoder(
                settings.width,
                layers=settings.layers,
                longest=settings.longest,
                dropout=settings.dropout,
            )
            self.items = items
            self.names = self._tasks() if isinstance(items, FieldVectors) else ()
            coding = {c.name: c for c in getattr(items, "coding", ())}
            sizes = [coding[name].size for name in self.names]
            self.heads = nn.ModuleList(nn.Linear(settings.width, size) for size in sizes)
        self.chance: Tensor  # (n + 1,) share of the events that an item has
        self._set_chance()

    def _tasks(self) -> tuple[str, ...]:
        """The fields with a head."""
        words = [c.name for c in self.items.coding if c.how == WORDS]  # pyright: ignore
        if self.settings.tasks is None:
            return tuple(words)
        for name in self.settings.tasks:
            if name not in words:
                want = f"fields of words that are read: {words}"
                fix = "A text or a number has no head; a field in `without` has none."
                raise ConfigError("tasks", got=repr(name), want=want, fix=fix)
        return self.settings.tasks

    def _set_chance(self) -> None:
        counts = torch.from_numpy(np.append(0, self.known.popularity())).float()
        share = counts / counts.sum().clamp_min(1)
        device = next(self.encoder.parameters()).device
        self.register_buffer("chance", share.to(device), persistent=False)

    @property
    def task(self) -> NextItem:
        return NextItem(every=False, k=K)

    def samples(self, events: Interactions) -> Dataset[Any]:
        return Prefixes(events, self.settings.longest, every=False)

    def questions(self, events: Interactions) -> Dataset[Any]:
        return Prefixes(events, self.settings.longest, every=True)

    def states(self, x: Tensor, vectors: Tensor, places: Tensor | None = None) -> Tensor:
        """h of every place.  x (B, n), vectors of all items, or of `places` -> (B, n, d)."""
        at = x if places is None else torch.searchsorted(places, x)
        there = x > 0
        z = self.encoder(vectors[at], there)
        if self.settings.pool == "last":
            return z
        # mean of the states so far, for every prefix at once
        return z.cumsum(1) / there.cumsum(1).clamp_min(1)[..., None]

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        """Scores (B, items + 1) of the next item; with a target (B,) the losses of all places."""
        if target is None:
            vectors = self.items()
            none = torch.arange(len(vectors), device=x.device) == 0  # a place that is no item
            scores = self.states(x, vectors)[:, -1] @ vectors.T
            return scores.masked_fill(none, -torch.inf)
        following = torch.cat([x[:, 1:], target[:, None]], 1)
        known = x > 0
        wanted = following[known]  # (N,)
        if len(self.known.item_ids) <= LARGE:
            vectors, places, shift = self.items(), None, 0.0
            own = wanted
        else:
            places, log_chance = self._sampled(x, target, len(wanted))
            vectors, shift = self.items(places), log_chance
            own = torch.searchsorted(places, wanted)
        h = self.states(x, vectors, places)[known]  # (N, d)
        scores = h @ vectors.T - shift  # logQ: a frequent item is among the sample more often
        absent = (self.chance if places is None else self.chance[places]) == 0
        absent[own] = False  # an event that the model was not built of
        scores = scores.masked_fill(absent, -torch.inf)
        losses = {"item": F.cross_entropy(scores, own)}
        for name, head in zip(self.names, self.heads, strict=True):
            losses[name] = self.settings.weight * self._of_field(name, head(h), wanted)
        return losses

    def _sampled(self, x: Tensor, target: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Places, sorted, of the batch's items and others, and log of their chance to be there."""
        taken = self.chance.nonzero()[:, 0]
        others = taken[torch.randint(len(taken), (SAMPLED,), device=x.device)]
        zero = x.new_zeros(1)
        places = torch.cat([zero, x.flatten(), target, others]).unique()
        absent = (draws * torch.log1p(-self.chance[places].clamp_max(0.999))).exp()
        absent = absent * (1 - 1 / len(taken)) ** SAMPLED
        return places, torch.log1p(-absent).clamp_min(-30)

    def _of_field(self, name: str, logits: Tensor, wanted: Tensor) -> Tensor:
        """The loss of a head: the words that the next item has under a name."""
        vectors: Any = self.items
        place = next(i for i, c in enumerate(vectors.coding) if c.name == name)
        codes = vectors.codes(place)[wanted]  # (N, most), -1 = none, 0 = not known
        if self.known.fields[name].kind == SEVERAL:
            several = torch.zeros_like(logits).scatter(1, codes.clamp_min(0), 1.0)
            return F.binary_cross_entropy_with_logits(logits[:, 1:], several[:, 1:])
        first = codes[:, 0]
        if not bool((first > 0).any()):
            return logits.sum() * 0
        return F.cross_entropy(logits, first, ignore_index=0)

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        if not len(history):  # nothing to go by but what is popular
            return self.chance.clamp_min(1e-12).log()
        x = padded([history], self.settings.longest).to(self.chance.device)
        return self(x)[0]

    def add_items(self, ids: Sequence[str], fields: Mapping[str, ItemField]) -> None:
        """Know more items, by their fields alone: nothing is learned.

        Raises: DataError for an id that is known, or a field that is missing; ConfigError for a
        model of ids.
        """
        if not isinstance(self.items, FieldVectors):
            fix = "Build it by M2TRec(...), whose items are their fields."
            raise ConfigError("new items", got="a model of ids", want="one of fields", fix=fix)
        known = grown(self.known, ids, fields)
        self.items.set(known.fields)
        self.known = known
        self._set_chance()

    def explain(self, who: str | int | Sequence[str], item: str) -> dict[str, float]:
        """What each field of an item adds to its score: the score less that without the field.

        Sorted, most first.  Raises: DataError for an item that is not known.
        """
        return self.reasons(who, [item])[0]

    def reasons(
        self, who: str | int | Sequence[str], items: Sequence[str]
    ) -> list[dict[str, float]]:
        """`explain` of several items: the session is read once."""
        if not isinstance(self.items, FieldVectors):
            fix = "Ask a model of fields."
            raise ConfigError("explain", got="a model of ids", want="one of fields", fix=fix)
        own = [self.known.item(item) + 1 for item in items]
        places = torch.tensor(own, dtype=torch.int64, device=self.chance.device)
        _, history = self.read(who)
        with evaluating(self), torch.no_grad():
            x = padded([history], self.settings.longest).to(places.device)
            h = self.states(x, self.items())[0, -1]
            scores = self.items(places) @ h  # (items,)
            names = [coding.name for coding in self.items.coding]
            less = [self.items(places, without=i) @ h for i in range(len(names))]
        adds = (scores - torch.stack(less)).T.tolist()  # (items, fields)
        found = [dict(zip(names, row, strict=True)) for row in adds]
        return [dict(sorted(one.items(), key=lambda pair: -pair[1])) for one in found]


class Prefixes(Dataset[tuple[Tensor, int]]):
    """(items so far, next item) of sessions; each prefix, or the whole session but its last item.

    every: for scores, which look at one place each.
    Raises: DataError for sessions of one event only.
    """

    def __init__(self, events: Interactions, longest: int, *, every: bool) -> None:
        spans = events.sessions(longest=longest + 1).spans
        first, last = np.array(spans, dtype=np.int64).T  # of each session
        self.items, self.longest = events.items, longest
        if every:
            counts = last - first - 1  # prefixes
            inside = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            self.first = np.repeat(first, counts)
            self.next = self.first + 1 + inside
        else:
            self.first, self.next = first, last - 1

    def __len__(self) -> int:
        return len(self.next)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        at = int(self.next[place])
        first = max(int(self.first[place]), at - self.longest)
        # nothing is copied before it is asked for: events may be many
        return torch.from_numpy(self.items[first:at] + 1), int(self.items[at]) + 1


CARD = Card(
    "m2trec",
    kind="model",
    config=M2TRec,
    paper=Paper(
        "2209.11824",
        2022,
        "M2TRec: Metadata-aware Multi-task Transformer for Large-scale and Cold-start free "
        "Session-based Recommendations",
    ),
    tiny={"width": 16, "layers": 1, "longest": 6},
    summary="The next item of a session, each item known by its metadata: new items at once.",
    family="recommenders",
    names=("Metadata-aware multi-task Transformer",),
    exceptions={"is_an_estimator": "sessions are no table of rows; intarsia.fit trains it"},
)
