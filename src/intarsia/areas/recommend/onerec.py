"""OneRec: one generative model of sessions instead of recall and ranking (arXiv:2502.18965)."""

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
from ...core.schema import check, setting
from ...data.interactions import Interactions
from ...mixtures import Mixture, StackedExperts
from ...routers import TopK
from ...train.tasks import NextSession
from .beams import GeneratedItems, TrieTensors, generate_items
from .recommender import Recommendation, Recommender, Settings
from .semantic_ids import SemanticIds, Trie, item_vectors
from .session_encoder import Attention, Cache, SessionEncoder, pad_sessions

BEAMS = 1_000  # items that a ranking of all items generates
STRIDE, LEAST = 3, 5  # windows of training begin every 3 events, after at least 5
LIKED, SHARE = 4.0, 0.6  # a session was liked if this share of its ratings is at least LIKED


@dataclass(frozen=True)
class OneRec(Settings):
    """Model history -> encoder -> decoder, with mixtures as MLPs -> tokens of a whole session.

    An item is its semantic id, see `SemanticIds`; in the encoder it is the sum of its tokens'
    vectors. The loss is the mean cross-entropy over all tokens of sessions that were liked: at
    least .6 of the ratings are 4 or more (all sessions, where nothing is rated).

    model = OneRec().build(train);  model.session("42");  model.recommend("42", 10)
    `PreferenceRounds` then aligns it with a reward, which costs coverage.
    Raises: ConfigError for a setting out of range; in `build` DataError for too few items.
    Not for new items: an id comes from the training events.
    Source: paper, sections 3.1 to 3.3.
    """

    codes: tuple[int, ...] = setting(
        (16, 16, 16),
        "The number of codes at each level of the semantic ids.",
        fix="For example: 16,16,16",
    )
    balanced: bool = setting(True, "Whether every code of the ids gets equally many items.")
    width: int = setting(64, "The width of the encoder and of the decoder.")
    layers: int = setting(2, "The layers of the encoder and of the decoder each.", least=1)
    experts: int = setting(
        8, "The experts of each of the decoder's mixtures; 1 is a dense MLP.", least=1
    )
    active: int = setting(2, "The experts of a token in the decoder's mixtures.")
    history: int = setting(20, "The number of last items that are read.", least=1)
    session: int = setting(5, "The number of items to generate.", least=1)

    data_of: ClassVar[str] = "sessions"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 8, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-2}
    )

    def __post_init__(self) -> None:
        """Check each setting, and that an id has a level.  Raises: ConfigError."""
        check(self)
        if not self.codes:
            raise ConfigError("codes", got="none", want="one level", fix="For example: 16,16,16")
        if self.experts > 1:
            # built for its checks alone: `active` must fit the experts
            TopK(experts=self.experts, active=self.active)

    @property
    def reads(self) -> int:
        """The items of `history`."""
        return self.history

    def build(self, data: Interactions, *, seed: int = 0) -> OneRecModel:
        """Build an untrained model, with semantic ids of the events' items."""
        vectors = item_vectors(data)
        ids = SemanticIds(self.codes, self.balanced, seed).fit(vectors)
        return OneRecModel(self, data, ids, generator=torch.Generator().manual_seed(seed))

    def restore(self, data: Interactions, stored: Mapping[str, Tensor]) -> OneRecModel:
        """Build a model with the stored ids, "tokens".  Raises: DataError for other items."""
        # stored tokens are codes plus the offset of their level
        first = np.cumsum((0, *self.codes))  # of each level's tokens
        codes = stored["tokens"].numpy()[1:] - first
        if len(codes) != len(data.item_ids):
            got, want = f"ids of {len(codes)} items", f"{len(data.item_ids)}, as the events have"
            raise DataError("semantic ids", got=got, want=want, fix="Train it anew.")
        ids = SemanticIds(self.codes, self.balanced)
        ids.codes_, ids.trie_ = codes, Trie.of(codes)
        return OneRecModel(self, data, ids, generator=torch.Generator().manual_seed(0))


class DecoderBlock(nn.Module):
    """Decoder block: causal attention, attention to the history, a mixture of experts, pre-norm."""

    def __init__(self, settings: OneRec, generator: torch.Generator) -> None:
        """Build two attentions and the MLP, a top-k mixture if `settings.experts` is above 1."""
        super().__init__()
        w = settings.width
        self.norms = nn.ModuleList(nn.LayerNorm(w) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(w), Attention(w)
        experts = settings.experts
        self.mlp: nn.Module = nn.Sequential(nn.Linear(w, 2 * w), nn.GELU(), nn.Linear(2 * w, w))
        if experts > 1:
            stack = StackedExperts(experts, w, 2 * w, generator=generator)
            router = TopK(experts=experts, active=settings.active)
            self.mlp = Mixture(stack, router.build(w, generator=generator))

    def forward(
        self, x: Tensor, memory: tuple[Cache, Tensor], cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """Apply the block to new tokens, and return their states and the extended cache.

        x: (R, t, d), tokens after those in the cache; memory: keys and values of the history, and
          its mask (R, 1, n); cache: keys and values of earlier tokens, None = none.
        """
        y = self.norms[0](x)
        extended = self.self_attention.cache(y)
        if cache is not None:
            extended = torch.cat([cache[0], extended[0]], 2), torch.cat([cache[1], extended[1]], 2)
        # causal: token i of the new ones attends to all earlier ones and itself
        t, past = x.shape[1], extended[0].shape[2]
        visible = torch.ones(1, t, past, dtype=torch.bool, device=x.device).tril(past - t)
        x = x + self.self_attention.read(y, extended, visible)
        x = x + self.cross_attention.read(self.norms[1](x), memory[0], memory[1])
        return x + self.mlp(self.norms[2](x)), extended


@dataclass
class DecoderState:
    """State of the decoder.

    history: keys and values of the history, by block;  mask: (R, 1, n), of the history;  tokens:
    keys and values of generated tokens, by block;  place: number of generated tokens.
    """

    history: list[Cache]
    mask: Tensor
    tokens: list[Cache | None]
    place: int = 0


class OneRecModel(Recommender):
    """Model of `OneRec`.  histories (B, n), places from 1, 0 on the left -> sessions (B, S).

    In training model(x, sessions) gives the named loss; with per_session=True the log-probability
    of each session (B,), summed over its tokens.
    """

    writes_sessions = True
    settings: OneRec

    def __init__(
        self,
        settings: OneRec,
        events: Interactions,
        ids: SemanticIds,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(settings, events)
        w, codes = settings.width, ids.codes_
        # one vocabulary for all levels: a token is its code plus the offset of its level
        sizes = np.append(np.array(settings.codes), codes[:, -1].max() + 1)
        offsets = np.cumsum(sizes) - sizes
        self.ids, self.levels, self.vocabulary = ids, len(sizes), int(sizes.sum())
        self.paths = TrieTensors(ids.trie_, torch.from_numpy(offsets))
        self.tokens: (
            Tensor  # (n + 1, L), tokens of each item; row 0, no item, has the padding token
        )
        rows = np.concatenate([np.full((1, self.levels), self.vocabulary), codes + offsets])
        self.register_buffer("tokens", torch.from_numpy(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.token = nn.Embedding(self.vocabulary + 1, w)  # the last one begins a session
            self.position = nn.Embedding(settings.session * self.levels, w)
            for table in (self.token, self.position):
                nn.init.normal_(table.weight, std=w**-0.5)
            self.nobody = nn.Parameter(torch.zeros(w))  # the memory of an empty history
            self.encoder = SessionEncoder(
                w, layers=settings.layers, longest=settings.history, causal=False
            )
            blocks = (DecoderBlock(settings, generator) for _ in range(settings.layers))
            self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(w)

    @property
    def task(self) -> NextSession:
        return NextSession()

    def samples(self, events: Interactions) -> Dataset[Any]:
        return SessionWindows(events, self.settings, liked_only=True)

    def questions(self, events: Interactions) -> Dataset[Any]:
        return SessionWindows(events, self.settings, liked_only=False)

    def read_history(self, x: Tensor, copies: int = 1) -> tuple[list[Cache], Tensor]:
        """Encode histories: keys and values for each decoder block, and the mask (R, 1, n + 1).

        x: (B, n), numbers of items from 1, 0 = padding; copies: rows for each history, R = B *
          copies.
        """
        present = x > 0
        items = self.token(self.tokens[x]).sum(2)
        memory = self.encoder(items, present)
        # a learned first key, so that an empty history has one
        first = self.nobody.expand(len(x), 1, -1)
        memory = torch.cat([first, memory], 1).repeat_interleave(copies, 0)
        mask = torch.cat([torch.ones_like(present[:, :1]), present], 1).repeat_interleave(copies, 0)
        blocks: Any = self.blocks
        return [block.cross_attention.cache(memory) for block in blocks], mask[:, None]

    def logits(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Compute logits of each token given those before it.

        x: (B, n), histories as numbers of items; tokens: (B, t), the right ones.  -> (B, t, V).
        """
        # teacher forcing: each position sees the right tokens before it
        caches, mask = self.read_history(x)
        begin = torch.full_like(tokens[:, :1], self.vocabulary)
        before = torch.cat([begin, tokens[:, :-1]], 1)
        y = self.token(before) + self.position.weight[: before.shape[1]]
        for block, cache in zip(self.blocks, caches, strict=True):
            y, _ = block(y, (cache, mask), None)
        return self.norm(y) @ self.token.weight[: self.vocabulary].T

    def forward(self, x: Tensor, target: Tensor | None = None, *, per_session: bool = False) -> Any:
        """Generate sessions (B, S), or with target sessions compute the training loss.

        x: (B, n), histories as numbers of items; target: (B, S), the sessions that follow;
          per_session: return the log-probability of each session, (B,), instead of the loss.
        """
        if target is None:
            return self.generate(x, self.settings.session).items[:, 0]
        tokens = self.tokens[target].flatten(1)  # (B, S L)
        logits = self.logits(x, tokens)
        if per_session:
            return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
        return {"tokens": F.cross_entropy(logits.flatten(0, 1), tokens.flatten())}

    # the methods of `Decoder`, see `beams`
    def start(self, x: Tensor, copies: int) -> DecoderState:
        """Encode histories, and return the decoder's state before the first token."""
        caches, mask = self.read_history(x, copies)
        return DecoderState(caches, mask, [None] * len(caches))

    def step(self, state: DecoderState, token: Tensor | None) -> Tensor:
        """Decode one position of all rows, and advance the cached state in place.

        state: caches of histories and of earlier tokens; token: (rows,), the token before the
          position; None = the position is the first.  -> log-probabilities of the next token,
          (rows, vocabulary).
        """
        rows = len(state.mask)
        begin = self.tokens.new_full((rows,), self.vocabulary)
        # the token before, and the position in the session
        y = self.token(begin if token is None else token) + self.position.weight[state.place]
        y = y[:, None]
        for i, block in enumerate(self.blocks):
            y, state.tokens[i] = block(y, (state.history[i], state.mask), state.tokens[i])
        state.place += 1
        scores = self.norm(y[:, 0]) @ self.token.weight[: self.vocabulary].T
        return scores.log_softmax(-1)

    def reorder(self, state: DecoderState, rows: Tensor) -> None:
        """Let rows of the decoder's state go on from other rows, in place, as beam search needs it.

        rows: (R,), for each row the one that it continues.
        """
        # the history's cache needs no reordering: rows of one history share it
        state.tokens = [None if c is None else (c[0][rows], c[1][rows]) for c in state.tokens]

    @torch.no_grad()
    def generate(
        self,
        x: Tensor,
        items: int,
        *,
        width: int = 8,
        excluded: Tensor | None = None,
        draws: torch.Generator | None = None,
    ) -> GeneratedItems:
        """Generate items after each history: the `width` best sequences, or as many draws.

        x: (B, n), numbers of items from 1; excluded: (B, U), numbers of items that may not be
          generated; draws: generator to sample with, None = beam search.
        Raises: ConfigError for more items than the model's `session`.
        """
        at_least("items", items, 1)
        if items > self.settings.session:
            fix = "Build the model with a longer `session`."
            raise ConfigError("items", got=items, want=f"<= {self.settings.session}", fix=fix)
        x = x.to(self.tokens.device)
        excluded = None if excluded is None else excluded.to(x.device)
        with evaluating(self):
            return generate_items(
                self, self.paths, x, items, width=width, excluded=excluded, draws=draws
            )

    def draw(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Sample several sessions after each history.

        x: (B, n), histories as numbers of items; count: sessions for each. -> (B, count, S), the
          numbers of the S items of each session.
        """
        return self.generate(x, self.settings.session, width=count, draws=generator).items

    @property
    def codes(self) -> np.ndarray:
        """The semantic ids of the items, as they were learned."""
        return self.ids.codes_

    def session(
        self,
        query: str | int | Sequence[str],
        items: int | None = None,
        *,
        exclude_seen: bool = True,
    ) -> list[Recommendation]:
        """Return the most likely session in order, each item with its log-probability.

        items: their number, the setting `session` by default. Raises: DataError for an unknown
        user, or where too few items are left.
        """
        _, history = self.read(query)
        x = pad_sessions([history], self.settings.history)
        excluded = torch.tensor([sorted(set(history))]) if exclude_seen and history else None
        items = self.settings.session if items is None else items
        generated = self.generate(x, items, excluded=excluded)
        names = self.known.item_ids
        rows = zip(generated.items[0, 0].tolist(), generated.logp[0, 0].tolist(), strict=True)
        return [Recommendation(names[item - 1], logp) for item, logp in rows]

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Return each item's log-probability as the next, (n + 1,); -inf beyond the best 1,000."""
        x = pad_sessions([history], self.settings.history)
        count = len(self.paths.path)
        generated = self.generate(x, 1, width=min(count, BEAMS))
        scores = generated.logp.new_full((count + 1,), -torch.inf)
        scores[generated.items[0, :, 0]] = generated.logp[0, :, 0]
        return scores

    def ranked(self, x: Tensor, k: int) -> Tensor:
        return self.generate(x, 1, width=min(k, len(self.paths.path))).items[:, :, 0]


class SessionWindows(Dataset[tuple[Tensor, Tensor]]):
    """Data set of (history, session): the items before an event, and those from it on.

    liked_only: only sessions that were liked, for training; evaluation uses all.
    Raises: DataError where no user has enough events.
    """

    def __init__(self, events: Interactions, settings: OneRec, *, liked_only: bool) -> None:
        """List all windows of users: (first event of the history, first of the session)."""
        self.settings = settings
        self.items = torch.from_numpy(events.items) + 1
        rated = not np.isnan(events.ratings).all()
        ends = np.searchsorted(events.users, np.arange(len(events.user_ids) + 1))
        step = STRIDE if liked_only else settings.session
        self.index: list[tuple[int, int]] = []
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            # windows of a user: at least `least` items before, a whole session after
            least = min(LEAST, settings.history) if liked_only else 1
            for start in range(first + least, last - settings.session + 1, step):
                ratings = events.ratings[start : start + settings.session]
                if not liked_only or not rated or (ratings >= LIKED).mean() >= SHARE:
                    self.index.append((max(first, start - settings.history), start))
        if not self.index:
            kind = "liked session" if liked_only else "session"
            got = f"no user with {LEAST} events and a {kind} after them"
            want, fix = f"sessions of {settings.session}", "Write shorter sessions."
            raise DataError("sessions", got=got, want=want, fix=fix)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        """Return a history and the session that follows it, as numbers of items."""
        first, start = self.index[place]
        return self.items[first:start], self.items[start : start + self.settings.session]


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
