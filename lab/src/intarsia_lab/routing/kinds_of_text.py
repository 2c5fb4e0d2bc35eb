"""Four kinds of text for small mixtures: code, glosses of a dictionary, help pages, novels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.core.seeds import mix
from intarsia.data.small_models import SmallModel, small_decoder
from intarsia.fitting import fit
from intarsia.folders.verbs import upcycle
from intarsia.gating import RouterConfig
from intarsia.mixtures import Capacity
from intarsia.train import cosine

from ..materials import byte_pairs, routing_traces
from ..materials.byte_pairs import BytePairs
from .cell import CLIP, WARMUP, WEIGHT_DECAY
from .materials import as_met

SHAPE, LENGTH, VOCABULARY = SmallModel(), 64, 2048
BATCH, LR = 16, 3e-3  # as in the routers' comparisons
LEARNED, TESTED = 0.9, 40  # of each text; rows of the rest of it


@dataclass(frozen=True)
class TextKinds:
    """Rows of tokens (n, 64) of each kind, to learn from and to test on."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]

    def parts(self, names: Sequence[str] | None = None) -> TensorDataset:
        """Return the test rows of some kinds of text; of all if none is named."""
        rows = torch.cat([self.test[name] for name in names or self.test])
        return TensorDataset(rows, rows)

    def stream(self, order: Sequence[str], first: int, steps: int, seed: int) -> TensorDataset:
        """Return batches with as many rows of each kind, kind after kind within a batch.

        order: the kinds, in this order; first, steps: number of the first step, and how many; seed:
          of the draws. Which rows a step has depends on the seed and the step's number alone.
        """
        # all kinds' rows are joined: where each kind begins
        per_kind, starts, position = BATCH // len(order), dict[str, int](), 0
        for name in order:
            starts[name], position = position, position + len(self.train[name])
        choices: list[Tensor] = []
        for step in range(first, first + steps):
            draws = torch.Generator().manual_seed(mix(seed, step))
            for name in sorted(order):  # the same rows in any order of the kinds
                drawn = torch.randint(len(self.train[name]), (per_kind,), generator=draws)
                choices.append(drawn + starts[name])
        turns = torch.stack(choices).view(steps, len(order), per_kind)
        # from sorted names to the order that was asked for
        turns = turns[:, [sorted(order).index(name) for name in order]]
        # so that the shuffle of `fit` restores this order
        laid = as_met(turns.reshape(-1), per_kind * len(order), seed)
        rows = torch.cat([self.train[name] for name in order])[laid]
        return TensorDataset(rows, rows)


@lru_cache(maxsize=1)
def kinds() -> TextKinds:
    """Return rows of tokens of four kinds of text: nine tenths to learn from, the rest to test."""
    corpus = routing_traces.texts()
    # one tokenizer for all kinds
    words = vocabulary(list(corpus.values()))
    train, test = dict[str, Tensor](), dict[str, Tensor]()
    for name, text in corpus.items():
        cut = int(LEARNED * len(text))
        train[name] = in_rows(words, text[:cut])
        test[name] = in_rows(words, text[cut:])[:TESTED]
    return TextKinds(train, test)


def vocabulary(texts: Sequence[str]) -> BytePairs:
    """Train a BPE tokenizer on the beginnings of texts."""
    return byte_pairs.trained((text[:300_000] for text in texts), VOCABULARY)


def in_rows(words: BytePairs, text: str) -> Tensor:
    """Return a text as rows of 64 tokens, (n, 64) int64; a shorter rest is left out.

    words: the tokenizer; text: to encode.
    """
    ids = torch.tensor(words(text)["input_ids"])
    # whole rows only
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def decoder_of_experts(
    router: RouterConfig,
    seed: int,
    *,
    capacity: Capacity | None = None,
    shape: SmallModel | None = None,
) -> nn.Module:
    """Return an untrained decoder with mixtures of randomly drawn experts as its MLPs.

    router: settings; seed: of the weights; capacity: limit on the tokens of an expert, None = none;
      shape: sizes, None = four layers.
    """
    shape = shape or SHAPE
    model = small_decoder(shape, tokens=VOCABULARY, length=LENGTH, seed=seed)
    # newly drawn experts differ from the start
    return upcycle(model, router, how="fresh", capacity=capacity, seed=seed, sees_later=True)


def learn(model: nn.Module, rows: TensorDataset, seed: int, batch: int = BATCH) -> None:
    """Train a model for one pass over rows, with the optimiser of the routers' comparisons.

    rows: placed by `as_met`, so that `fit` meets them in order; seed: of `fit`; batch: rows of a
      step.
    """
    fit(
        model,
        rows,
        epochs=1,
        batch_size=batch,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        clip=CLIP,
        seed=seed,
        # as in the comparisons: a warm-up, then half a cosine
        lr_factor=cosine(WARMUP),
        trackers=(),
    )
