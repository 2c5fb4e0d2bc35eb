"""OneRec: a generator of whole sessions in the place of recall and ranking (arXiv:2502.18965)."""

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
from ...core.checks import at_least
from ...core.errors import ConfigError, DataError
from ...core.modes import evaluating
from ...data.interactions import Interactions
from ...mixtures import Mixture, StackedExperts
from ...routers import TopK
from ...train.tasks import NextSession
from .beams import Paths, Written, write
from .recommender import Recommendation, Recommender, Settings
from .semantic_ids import SemanticIds, Trie, item_vectors
from .session_encoder import Attention, Cache, SessionEncoder, padded

WAYS = 1_000  # that are written for a ranking of items
STRIDE, LEAST = 3, 5  # windows of training begin every 3 events, after at least 5
LIKED, SHARE = 4.0, 0.6  # a session is good where this share of its ratings is at least so


@dataclass(frozen=True)
class OneRec(Settings):
    """History -> encoder -> decoder, whose MLPs are mixtures -> the tokens of a whole session.

    An item is its semantic id, see `SemanticIds`; in the encoder it is the sum of its tokens'
    vectors. The loss is the mean cross-entropy over all tokens of sessions that were liked: at
    least .6 of the ratings are 4 or more (all sessions, where nothing is rated).

    codes, balanced: of the ids.  width, layers: of encoder and decoder each.  experts, active: of
    the decoder's mixtures; 1 expert is a dense MLP.  history: the last items that are read.
    session: items that are written.

    model = OneRec().build(train);  model.session("42");  model.recommend("42", 10)
    `PreferenceRounds` then aligns it with a reward, which costs coverage.
    Raises: ConfigError on a setting that cannot be; in `build` DataError for too few items.
    Not for new items: an id comes from the training events.
    Source: paper, sections 3.1 to 3.3.
    """

    codes: tuple[int, ...] = (16, 16, 16)
    balanced: bool = True
    width: int = 64
    layers: int = 2
    experts: int = 8
    active: int = 2
    history: int = 20
    session: int = 5

    data_of: ClassVar[str] = "sessions"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 8, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-2}
    )

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "history", "session"):
            at_least(name, getattr(self, name), 1)
        if not self.codes:
            raise ConfigError("codes", got="none", want="one level", fix="For example: 16,16,16")
        if self.experts > 1:
            TopK(experts=self.experts, active=self.active)

    @property
    def reads(self) -> int:
        """The items of `history`."""
        return self.history

    def build(self, data: Interactions, *, seed: int = 0) -> OneRecModel:
        vectors = item_vectors(data)
        ids = SemanticIds(self.codes, self.balanced, seed).fit(vectors)
        return OneRecModel(self, data, ids, generator=torch.Generator().manual_seed(seed))

    def restore(self, data: Interactions, stored: Mapping[str, Tensor]) -> OneRecModel:
        """With the ids of the weights, whatever k-means would find here."""
        first = np.cumsum((0, *self.codes))  # of each level's tokens
        codes = stored["tokens"].numpy()[1:] - first
        if len(codes) != len(data.item_ids):
            got, want = f"ids of {len(codes)} items", f"{len(data.item_ids)}, as the events have"
            raise DataError("semantic ids", got=got, want=want, fix="Train it anew.")
        ids = SemanticIds(self.codes, self.balanced)
        ids.codes_, ids.trie_ = codes, Trie.of(codes)
        return OneRecModel(self, data, ids, generator=torch.Generator().manual_seed(0))


class DecoderBlock(nn.Module):
    """Causal attention, attention to the history, a mixture of experts; each behind a norm."""

    def __init__(self, settings: OneRec, generator: torch.Generator) -> None:
        super().__init__()
        w = settings.width
        self.norms = nn.ModuleList(nn.LayerNorm(w) for _ in range(3))
        self.own, self.other = Attention(w), Attention(w)
        experts = settings.experts
        self.mlp: nn.Module = nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w))
        if experts > 1:
            stack = StackedExperts(experts, w, 2 * w, generator=generator)
            router = TopK(experts=experts, active=settings.active)
            self.mlp = Mixture(stack, router.build(w, generator=generator))

    def forward(
        self, x: Tensor, seen: tuple[Cache, Tensor], cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """x: (R, t, d) after what is in the cache.  seen: the history's, and its mask (R, 1, n)."""
        y = self.norms[0](x)
        own = self.own.cache(y)
        if cache is not None:
            own = torch.cat([cache[0], own[0]], 2), torch.cat([cache[1], own[1]], 2)
        t, past = x.shape[1], own[0].shape[2]
        where = torch.ones(1, t, past, dtype=torch.bool, device=x.device).tril(past - t)
        x = x + self.own.read(y, own, where)
        x = x + self.other.read(self.norms[1](x), seen[0], seen[1])
        return x + self.mlp(self.norms[2](x)), own


@dataclass
class Writing:
    """A decoder's state: caches of the history and of what is written, and its mask."""

    history: list[Cache]
    mask: Tensor
    own: list[Cache | None]
    place: int = 0


class OneRecModel(Recommender):
    """The model of `OneRec`.  histories (B, n), places from 1, 0 on the left -> sessions (B, S).

    In training model(x, sessions) gives the named loss; with each=True the log-probability of each
    session (B,), summed over its tokens.
    """

    writes_sessions = True
    settings: OneRec

    def __init__(
        self, settings: OneRec, known: Interactions, ids: SemanticIds, *, generator: torch.Generator
    ) -> None:
        super().__init__(settings, known)
        w, codes = settings.width, ids.codes_
        sizes = np.append(np.array(settings.codes), codes[:, -1].max() + 1)
        offsets = np.cumsum(sizes) - sizes
        self.ids, self.levels, self.vocabulary = ids, len(sizes), int(sizes.sum())
        self.paths = Paths(ids.trie_, torch.from_numpy(offsets))
        self.tokens: Tensor  # (n + 1, L), of no item the place behind the vocabulary
        rows = np.concatenate([np.full((1, self.levels), self.vocabulary), codes + offsets])
        self.register_buffer("tokens", torch.from_numpy(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.token = nn.Embedding(self.vocabulary + 1, w)  # the last one begins a session
            self.position = nn.Embedding(settings.session * self.levels, w)
            for table in (self.token, self.position):
                nn.init.normal_(table.weight, std=w**-0.5)
            self.nobody = nn.Parameter(torch.zeros(w))  # what is known of an empty history
            self.encoder = SessionEncoder(
                w, layers=settings.layers, longest=settings.history, causal=False
            )
            blocks = (DecoderBlock(settings, generator) for _ in range(settings.layers))
            self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(w)

    @property
    def task(self) -> NextSession:
        return NextSession()

    def samples(self, events: Interactions) -> Dataset[Any]:
        return SessionWindows(events, self.settings, good=True)

    def questions(self, events: Interactions) -> Dataset[Any]:
        return SessionWindows(events, self.settings, good=False)

    def read_history(self, x: Tensor, copies: int = 1) -> tuple[list[Cache], Tensor]:
        """Keys and values of each block, and which may be seen.  x: (B, n)."""
        there = x > 0
        items = self.token(self.tokens[x]).sum(2)
        memory = self.encoder(items, there)
        first = self.nobody.expand(len(x), 1, -1)
        memory = torch.cat([first, memory], 1).repeat_interleave(copies, 0)
        mask = torch.cat([torch.ones_like(there[:, :1]), there], 1).repeat_interleave(copies, 0)
        blocks: Any = self.blocks
        return [block.other.cache(memory) for block in blocks], mask[:, None]

    def logits(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Of each token, given those before.  x: (B, n), tokens: (B, t) -> (B, t, V)."""
        caches, mask = self.read_history(x)
        begin = torch.full_like(tokens[:, :1], self.vocabulary)
        before = torch.cat([begin, tokens[:, :-1]], 1)
        y = self.token(before) + self.position.weight[: before.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            y, _ = block(y, (cache, mask), None)
        return self.norm(y) @ self.token.weight[: self.vocabulary].T

    def forward(self, x: Tensor, target: Tensor | None = None, *, each: bool = False) -> Any:
        if target is None:
            return self.written(x, self.settings.session).items[:, 0]
        tokens = self.tokens[target].flatten(1)  # (B, S L)
        logits = self.logits(x, tokens)
        if each:
            return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
        return {"tokens": F.cross_entropy(logits.flatten(0, 1), tokens.flatten())}

    # `Decoder`, see `beams`
    def start(self, x: Tensor, copies: int) -> Writing:
        caches, mask = self.read_history(x, copies)
        return Writing(caches, mask, [None] * len(caches))

    def step(self, state: Writing, token: Tensor | None) -> Tensor:
        rows = len(state.mask)
        begin = self.tokens.new_full((rows,), self.vocabulary)
        y = self.token(begin if token is None else token) + self.position.weight[state.place]
        y = y[:, None]
        for i, block in enumerate(self.blocks):
            y, state.own[i] = block(y, (state.history[i], state.mask), state.own[i])
        state.place += 1
        scores = self.norm(y[:, 0]) @ self.token.weight[: self.vocabulary].T
        return scores.log_softmax(-1)

    def reorder(self, state: Writing, rows: Tensor) -> None:
        state.own = [None if c is None else (c[0][rows], c[1][rows]) for c in state.own]

    @torch.no_grad()
    def written(
        self,
        x: Tensor,
        items: int,
        *,
        width: int = 8,
        taken: Tensor | None = None,
        draws: torch.Generator | None = None,
    ) -> Written:
        """The `width` best ways to write so many items after each history, or as many draws."""
        at_least("items", items, 1)
        if items > self.settings.session:
            fix = "Build the model with a longer `session`."
            raise ConfigError("items", got=items, want=f"<= {self.settings.session}", fix=fix)
        x = x.to(self.tokens.device)
        taken = None if taken is None else taken.to(x.device)
        with evaluating(self):
            return write(self, self.paths, x, items, width=width, taken=taken, draws=draws)

    def draw(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Sessions of the model's own.  x: (B, n) -> (B, count, S)."""
        return self.written(x, self.settings.session, width=count, draws=generator).items

    @property
    def codes(self) -> np.ndarray:
        """The ids that were learned."""
        return self.ids.codes_

    def session(
        self, who: str | int | Sequence[str], items: int | None = None, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """The most likely session, in its order, with each item's log-probability after the others.

        Raises: DataError for a user that is not known, or where too few items are left.
        """
        _, history = self.read(who)
        x = padded([history], self.settings.history)
        taken = torch.tensor([sorted(set(history))]) if exclude_seen and history else None
        items = self.settings.session if items is None else items
        found = self.written(x, items, taken=taken)
        names = self.known.item_ids
        rows = zip(found.items[0, 0].tolist(), found.logp[0, 0].tolist(), strict=True)
        return [Recommendation(names[item - 1], logp) for item, logp in rows]

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Log-probability of each item as the next one, by the 1,000 best ways to write one."""
        x = padded([history], self.settings.history)
        count = len(self.paths.path)
        found = self.written(x, 1, width=min(count, WAYS))
        scores = found.logp.new_full((count + 1,), -torch.inf)
        scores[found.items[0, :, 0]] = found.logp[0, :, 0]
        return scores

    def ranked(self, x: Tensor, k: int) -> Tensor:
        return self.written(x, 1, width=min(k, len(self.paths.path))).items[:, :, 0]


class SessionWindows(Dataset[tuple[Tensor, Tensor]]):
    """(history, session): the items before a place, and those after it.

    good: only sessions that were liked, for training; scores look at all.
    Raises: DataError where no user has enough events.
    """

    def __init__(self, events: Interactions, settings: OneRec, *, good: bool) -> None:
        self.settings = settings
        self.items = torch.from_numpy(events.items) + 1
        rated = not np.isnan(events.ratings).all()
        ends = np.searchsorted(events.users, np.arange(len(events.user_ids) + 1))
        step = STRIDE if good else settings.session
        self.index: list[tuple[int, int]] = []
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            least = min(LEAST, settings.history) if good else 1
            for at in range(first + least, last - settings.session + 1, step):
                own = events.ratings[at : at + settings.session]
                if not good or not rated or (own >= LIKED).mean() >= SHARE:
                    self.index.append((max(first, at - settings.history), at))
        if not self.index:
            got = f"no user with {LEAST} events and a {'liked ' if good else ''}session after them"
            want, fix = f"sessions of {settings.session}", "Write shorter sessions."
            raise DataError("sessions", got=got, want=want, fix=fix)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        first, at = self.index[place]
        return self.items[first:at], self.items[at : at + self.settings.session]


CARD = Card(
    "onerec",
    kind="model",
    config=OneRec,
    paper=Paper(
        "2502.18965",
        2025,
        "OneRec: Unifying Retrieve and Rank with Generative Recommender and Iterative Preference "
        "Alignment",
    ),
    tiny={"codes": (3, 3), "width": 16, "layers": 1, "experts": 2, "active": 2, "session": 2},
    summary="A session written token by token from semantic ids, by a decoder with sparse experts.",
    family="recommenders",
    names=("Generative recommender",),
    exceptions={"is_an_estimator": "sessions are no table of rows; intarsia.fit trains it"},
)
