"""M2TRec: recommendation in sessions, items represented by metadata only (arXiv:2209.11824)."""

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
from ...core.errors import ConfigError, UnknownName
from ...core.modes import evaluating
from ...core.schema import check, setting
from ...data.interactions import SEVERAL, Interactions, ItemField
from ...train.tasks import NextItem
from .item_fields import WORDS, FieldVectors, IdVectors
from .recommender import Recommender, Settings, with_new_items
from .session_encoder import SessionEncoder, pad_sessions

POOLS = ("mean", "last")
LARGE, SAMPLED = 50_000, 500  # items above which the softmax is over a sample, and its size
K = 20


@dataclass(frozen=True)
class M2TRec(Settings):
    """Model of a session's next item, each item a function of its metadata: L = CE + w sum_t L_t.

    e_i = MLP of the concatenated fields of item i (no id), h = mean or last state of a Transformer
    over the session, item scores h e_j; a head for each task t predicts a field of the next item,
    by cross-entropy where an item has one word, else by binary cross-entropy.  One causal pass
    trains on every place of a session.  The softmax is over the items that have an event: one
    without would only be pushed away.  Above 50,000 items it is over the batch's items and 500
    others, each score less the log of the item's chance to be in that sample.

    model = M2TRec(tasks=("class",)).build(data)
    Raises: ConfigError for a setting out of range; in `build` DataError without fields,
    UnknownName for a field that is not there.
    Not for catalogues where many items have equal metadata: they have equal scores. Where
    only new items compete, nearest neighbours by TF-IDF find more.
    Source: paper, section 3, which does not give w (ours: 1); the mean over a causal encoder's
    states, instead of one pass for each prefix, is ours.
    """

    tasks: tuple[str, ...] | None = setting(
        None,
        "The names of the fields t that are predicted; None = every field of words that the "
        "items have.",
    )
    weight: float = setting(1.0, "The weight w of the tasks' losses.", least=0)
    without: tuple[str, ...] = setting(
        (),
        "The names of fields that are not read, as a year that gives away which items are popular.",
    )
    width: int = setting(64, "The width of the Transformer.", least=1)
    layers: int = setting(2, "The number of the Transformer's layers.", least=1)
    pool: str = setting(
        "mean",
        'The state h of a session: the "mean" of its states, or the "last" one.',
        choices=POOLS,
    )
    dropout: float = setting(
        0.2, "The share of units that the Transformer zeroes in training.", least=0, below=1
    )
    longest: int = setting(
        50, "The items of a session that are read at most, the last ones.", least=1
    )

    data_of: ClassVar[str] = "sessions"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 12, "batch_size": 64, "lr": 2e-3, "weight_decay": 1e-4}
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def reads(self) -> int:
        """Number of the last items of a session that the model reads."""
        return self.longest

    def build(self, data: Interactions, *, seed: int = 0) -> M2TRecModel:
        """Build an untrained model.  Raises: UnknownName for a field that the items do not have."""
        for name in (*(self.tasks or ()), *self.without):
            if name not in data.fields:
                raise UnknownName("item field", name, data.fields)
        generator = torch.Generator().manual_seed(seed)
        fields = {n: f for n, f in data.fields.items() if n not in self.without}
        vectors = FieldVectors(fields, self.width, generator=generator)
        return M2TRecModel(self, data, vectors, generator=generator)


class M2TRecModel(Recommender):
    """Model of `M2TRec`: sessions (B, n) of places of items from 1, 0 on the left.

    items: vectors of all items, by fields or, for comparison, by ids.  names: fields with a head.
    """

    takes_items = explains = True
    settings: M2TRec

    def __init__(
        self,
        settings: M2TRec,
        events: Interactions,
        items: FieldVectors | IdVectors,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(settings, events)
        # torch's layers draw from the global generator: seed it, and restore it after
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
        words = [c.name for c in self.items.coding if c.kind == WORDS]  # pyright: ignore
        if self.settings.tasks is None:
            return tuple(words)
        for name in self.settings.tasks:
            if name not in words:
                want = f"fields of words that are read: {words}"
                fix = "A text or a number has no head; a field in `without` has none."
                raise ConfigError("tasks", got=repr(name), want=want, fix=fix)
        return self.settings.tasks

    def _set_chance(self) -> None:
        """Set `chance`, how often each item occurs in the events that the model knows."""
        counts = torch.from_numpy(np.append(0, self.known.popularity())).float()
        share = counts / counts.sum().clamp_min(1)
        device = next(self.encoder.parameters()).device
        self.register_buffer("chance", share.to(device), persistent=False)

    @property
    def task(self) -> NextItem:
        return NextItem(every=False, k=K)

    def samples(self, events: Interactions) -> Dataset[Any]:
        return SessionPrefixes(events, self.settings.longest, all_prefixes=False)

    def questions(self, events: Interactions) -> Dataset[Any]:
        return SessionPrefixes(events, self.settings.longest, all_prefixes=True)

    def states(self, x: Tensor, vectors: Tensor, places: Tensor | None = None) -> Tensor:
        """Compute the session's state h after every item, (B, n, d).

        x: (B, n), numbers of items from 1, 0 = padding; vectors: of all items, or of `places`
          alone; places: sorted numbers of items, None = all.
        """
        rows = x if places is None else torch.searchsorted(places, x)
        present = x > 0
        z = self.encoder(vectors[rows], present)
        if self.settings.pool == "last":
            return z
        # mean of the states so far, for every prefix at once
        return z.cumsum(1) / present.cumsum(1).clamp_min(1)[..., None]

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        """Compute scores of the next item, (B, items + 1); with a target the named losses.

        x: (B, n), sessions as numbers of items from 1, 0 = padding on the left; target: (B,), the
          next item.
        """
        if target is None:
            vectors = self.items()
            none = torch.arange(len(vectors), device=x.device) == 0  # a place that is no item
            scores = self.states(x, vectors)[:, -1] @ vectors.T
            return scores.masked_fill(none, -torch.inf)
        # each place of the session is trained to predict the item after it
        following = torch.cat([x[:, 1:], target[:, None]], 1)
        present = x > 0
        next_items = following[present]  # (N,)
        if len(self.known.item_ids) <= LARGE:
            vectors, places, shift = self.items(), None, 0.0
            label = next_items
        else:
            places, log_chance = self._sampled(x, target, len(next_items))
            vectors, shift = self.items(places), log_chance
            label = torch.searchsorted(places, next_items)
        h = self.states(x, vectors, places)[present]  # (N, d)
        scores = h @ vectors.T - shift  # logQ: a frequent item is among the sample more often
        absent = (self.chance if places is None else self.chance[places]) == 0
        absent[label] = False  # an event that the model was not built of
        scores = scores.masked_fill(absent, -torch.inf)
        losses = {"item": F.cross_entropy(scores, label)}
        for name, head in zip(self.names, self.heads, strict=True):
            losses[name] = self.settings.weight * self._of_field(name, head(h), next_items)
        return losses

    def _sampled(self, x: Tensor, target: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Sample items for the softmax: sorted numbers (M,), and the log of their chances (M,)."""
        # x: (B, n), sessions; target: (B,), the next items
        with_events = self.chance.nonzero()[:, 0]
        extra = with_events[torch.randint(len(with_events), (SAMPLED,), device=x.device)]
        zero = x.new_zeros(1)
        places = torch.cat([zero, x.flatten(), target, extra]).unique()
        # chance that neither one of the targets nor one of the uniform draws is this item
        absent = (draws * torch.log1p(-self.chance[places].clamp_max(0.999))).exp()
        absent = absent * (1 - 1 / len(with_events)) ** SAMPLED
        return places, torch.log1p(-absent).clamp_min(-30)

    def _of_field(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a head (N, codes) for a field of the next item."""
        vectors: Any = self.items
        place = next(i for i, c in enumerate(vectors.coding) if c.name == name)
        codes = vectors.codes(place)[target]  # (N, most), -1 = none, 0 = not known
        if self.known.fields[name].kind == SEVERAL:
            # several words: a binary target for each; code 0, not known, is left out of the loss
            several = torch.zeros_like(logits).scatter(1, codes.clamp_min(0), 1.0)
            return F.binary_cross_entropy_with_logits(logits[:, 1:], several[:, 1:])
        # one word: cross-entropy, without items with an unknown word
        first = codes[:, 0]
        if not bool((first > 0).any()):
            return logits.sum() * 0
        return F.cross_entropy(logits, first, ignore_index=0)

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Score all items for a session, (items + 1,); an empty one by popularity."""
        if not len(history):  # an empty session: rank by popularity
            return self.chance.clamp_min(1e-12).log()
        x = pad_sessions([history], self.settings.longest).to(self.chance.device)
        return self(x)[0]

    def add_items(self, ids: Sequence[str], fields: Mapping[str, ItemField]) -> None:
        """Add items by their fields alone.

        Raises: DataError for a known id, or a missing field; ConfigError for a model of ids.
        """
        if not isinstance(self.items, FieldVectors):
            fix = "Build it by M2TRec(...), whose items are their fields."
            raise ConfigError("new items", got="a model of ids", want="one of fields", fix=fix)
        events = with_new_items(self.known, ids, fields)
        self.items.set(events.fields)
        self.known = events
        # `chance`, the share of each item in the events, needs an entry for the new ones
        self._set_chance()

    def explain(self, query: str | int | Sequence[str], item: str) -> dict[str, float]:
        """Return how much each field adds to an item's score: field -> number, the largest first.

        It is the item's score minus its score when this field is left out of the item. query: a
        user's id, or ids of a session's items.  Raises: DataError for an unknown item.
        """
        return self.reasons(query, [item])[0]

    def reasons(
        self, query: str | int | Sequence[str], items: Sequence[str]
    ) -> list[dict[str, float]]:
        """Return `explain` of several items; the session is encoded once.  Raises: ConfigError."""
        if not isinstance(self.items, FieldVectors):
            fix = "Ask a model of fields."
            raise ConfigError("explain", got="a model of ids", want="one of fields", fix=fix)
        indices = [self.known.item(item) + 1 for item in items]
        places = torch.tensor(indices, dtype=torch.int64, device=self.chance.device)
        _, history = self.read(query)
        with evaluating(self), torch.no_grad():
            x = pad_sessions([history], self.settings.longest).to(places.device)
            h = self.states(x, self.items())[0, -1]
            scores = self.items(places) @ h  # (items,)
            names = [coding.name for coding in self.items.coding]
            # scores with one field after the other treated as unknown
            less = [self.items(places, without=i) @ h for i in range(len(names))]
        adds = (scores - torch.stack(less)).T.tolist()  # (items, fields)
        contributions = [dict(zip(names, row, strict=True)) for row in adds]
        return [
            dict(sorted(contribution.items(), key=lambda pair: -pair[1]))
            for contribution in contributions
        ]


class SessionPrefixes(Dataset[tuple[Tensor, int]]):
    """Data set of (items so far, next item) of sessions.

    all_prefixes: a sample for every prefix, as evaluation needs, or one for each session, which
    predicts its last item.
    Raises: DataError for sessions of one event only.
    """

    def __init__(self, events: Interactions, longest: int, *, all_prefixes: bool) -> None:
        """List for each sample the first event of its session and the event to predict."""
        spans = events.sessions(longest=longest + 1).spans
        first, last = np.array(spans, dtype=np.int64).T  # of each session, the end exclusive
        self.items, self.longest = events.items, longest
        if all_prefixes:
            counts = last - first - 1  # prefixes
            inside = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            self.first = np.repeat(first, counts)
            self.next = self.first + 1 + inside
        else:
            self.first, self.next = first, last - 1

    def __len__(self) -> int:
        return len(self.next)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """Return the items before an event, as numbers from 1, and the event's item."""
        next_event = int(self.next[place])
        first = max(int(self.first[place]), next_event - self.longest)
        # events may be many: samples are views of them, made on demand
        return torch.from_numpy(self.items[first:next_event] + 1), int(self.items[next_event]) + 1


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
