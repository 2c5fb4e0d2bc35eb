"""What the contenders learn from: rows of a corpus, or pictures, in one order for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

from intarsia.core.errors import DataError
from intarsia.core.reading import read_tensors
from intarsia.core.seeds import mix
from intarsia.core.store import building, key_of
from intarsia.data import corpora, sets
from intarsia.data.images import ImageSet
from intarsia.data.packages import announce, cache_dir
from intarsia.train.order import Order

from ..materials.byte_pairs import KINDS, BytePairs, trained_once
from .scale import Scale

SEGMENT = 16_384  # characters of a text that stay together in one part
PARTS = {"test": 16, "val": 2, "train": 256}
VAL_PICTURES = 1000
SWAPPED = 0.025  # of the tokens, where it is asked how a model takes noise


@dataclass(frozen=True)
class Material:
    """x: rows of tokens (n, T) or pictures (n, C, H, W); y: the same rows, or classes (n,).

    classes: their names, or the kinds of tokens; kinds: of each token of the vocabulary, its
    class, and sizes: its bytes; None and None for pictures.
    """

    name: str
    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    classes: tuple[str, ...]
    kinds: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def text(self) -> bool:
        return self.kinds is not None

    @property
    def swapped(self) -> TensorDataset:
        """The test part with a fortieth of the input tokens replaced at random.

        The tokens to predict stay.
        """
        assert self.kinds is not None
        x, y = self.test.tensors
        # the same replacements for every router
        draws = torch.Generator().manual_seed(0)
        hit = torch.rand(x.shape, generator=draws) < SWAPPED
        replacement = torch.randint(len(self.kinds), x.shape, generator=draws)
        return TensorDataset(torch.where(hit, replacement, x), y)


def is_text(name: str) -> bool:
    """Return True for a corpus, False for a set of pictures."""
    return name in corpora.names()


def edition(name: str) -> dict[str, str]:
    """Return the edition of a corpus, if it has one, as part of the inputs of a run."""
    version = corpora.CORPORA[name].edition if is_text(name) else ""
    return {"edition": version} if version else {}


def material(name: str, scale: Scale) -> Material:
    """Return a corpus or a set of pictures as training, validation and test part.

    name: of it; scale: sizes. It is obtained and divided the first time. A text is divided into
      segments, which are distributed over the parts at random, the same for all: neighbouring
      sentences are in one part, and every part has all of the text's subjects. The BPE tokenizer is
      learned on the training part.
    Raises: UnknownName, AssetError, DataError.
    """
    # a name is a text's or a set of pictures'
    return _rows(name, scale) if is_text(name) else _pictures(name, scale)


def _rows(name: str, scale: Scale) -> Material:
    """Return a corpus as rows of tokens, prepared once and then read from the cache."""
    # everything that the rows depend on is in the file's name
    inputs = {
        "corpus": name,
        "length": scale.length,
        "vocabulary": scale.vocabulary,
        "segment": SEGMENT,
        "parts": PARTS,
        **edition(name),
    }
    folder, key = cache_dir() / "routing", key_of(inputs)
    file = folder / f"{name}-{key}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            _cut(name, scale, folder / f"{name}-{key}.json", scratch)
    tensors: dict[str, Tensor] = read_tensors(file)
    # the file exists by now: no text is needed
    bpe = trained_once(folder / f"{name}-{key}.json", (), scale.vocabulary)
    rows = {part: tensors[part].long() for part in PARTS}
    rows["test"] = rows["test"][: scale.test]
    # the target is the row itself, shifted by the loss
    datasets = {part: TensorDataset(x, x) for part, x in rows.items()}
    kinds, sizes = torch.tensor(bpe.kinds), torch.tensor(bpe.sizes)
    return Material(name, datasets["train"], datasets["val"], datasets["test"], KINDS, kinds, sizes)


def _cut(name: str, scale: Scale, bpe_file: Path, target: Path) -> None:
    """Divide a corpus into parts, tokenise them and save the rows of tokens."""
    text = corpora.read(name, announce)
    if not isinstance(text, str):
        subject, got = f"corpus {name!r}", "questions and answers"
        raise DataError(
            subject, got=got, want="one text", fix=f"Choose another of {corpora.names()}."
        )
    # the tokenizer may see the training part alone
    parts = segments(text)
    bpe = trained_once(bpe_file, parts["train"], scale.vocabulary)
    save_file({p: in_rows(bpe, pieces, scale.length) for p, pieces in parts.items()}, str(target))


def segments(text: str) -> dict[str, list[str]]:
    """Divide a text into pieces of 16,384 characters, and distribute these over the parts.

    Raises: DataError for a text of less than three pieces.
    """
    pieces = [text[i : i + SEGMENT] for i in range(0, len(text), SEGMENT)]
    if len(pieces) < 3:
        subject, got = "text", f"{len(text)} characters"
        raise DataError(
            subject, got=got, want=f"more than {2 * SEGMENT}", fix="Choose a longer one."
        )
    # pieces are distributed at random, by one seed for all
    lot = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist()
    by_part: dict[str, list[str]] = {}
    for part, limit in PARTS.items():
        # a short text: at most a tenth for validation and for the test
        count = limit if part == "train" else min(limit, max(1, len(pieces) // 10))
        by_part[part], lot = [pieces[i] for i in lot[:count]], lot[count:]
    return by_part


def in_rows(bpe: BytePairs, texts: Sequence[str], length: int) -> Tensor:
    """Return texts as rows of tokens, one text after another, (n, length) int16.

    bpe: the tokenizer; length: tokens of a row; a shorter rest is left out.
    """
    # int16 halves the file: the vocabulary is small
    ids = torch.tensor([i for text in texts for i in bpe(text)["input_ids"]], dtype=torch.int16)
    return ids[: len(ids) // length * length].view(-1, length).contiguous()


def _pictures(name: str, scale: Scale) -> Material:
    """Return a set of pictures, normalised by mean and deviation of the training part."""
    train, test = sets.load(name, part="train"), sets.load(name, part="test")
    x, y = _tensor(train), torch.as_tensor(np.asarray(train.labels)).long()
    # the last pictures of the training part
    val = min(VAL_PICTURES, len(x) // 10)
    mean, std = x[:-val].mean(), x[:-val].std()
    test_pictures, labels = (
        _tensor(test)[: scale.test],
        torch.as_tensor(np.asarray(test.labels)).long(),
    )
    return Material(
        name,
        TensorDataset((x[:-val] - mean) / std, y[:-val]),
        TensorDataset((x[-val:] - mean) / std, y[-val:]),
        TensorDataset((test_pictures - mean) / std, labels[: scale.test]),
        tuple(train.classes),
    )


def _tensor(pictures: ImageSet) -> Tensor:
    """Convert pictures to a tensor (n, channels, H, W) of float32 in 0 ... 1."""
    if not isinstance(pictures.images, np.ndarray):
        subject, got = f"pictures of {pictures.name!r}", "files of several sizes"
        raise DataError(subject, got=got, want="one array", fix="Choose fashion-mnist.")
    x = torch.from_numpy(np.ascontiguousarray(pictures.images)).float() / 255
    # grey pictures have no axis of channels
    return x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()


def stream(data: TensorDataset, first: int, steps: int, batch: int, seed: int) -> TensorDataset:
    """Return the rows of some training steps, ordered so that `fit` meets them step by step.

    data: rows to draw from; first, steps: number of the first step, and how many; batch: rows of a
      step; seed: of the draws. `fit` shuffles, and the order undoes that. The rows of a step depend
      on the seed and the step's number alone.
    """
    x, y = data.tensors
    needed, index = (first + steps) * batch, list[Tensor]()
    # one permutation of the data after another, as many as are needed
    for turn in range(-(-needed // len(x))):
        draws = torch.Generator().manual_seed(mix(seed, turn))
        index.append(torch.randperm(len(x), generator=draws))
    laid = as_met(torch.cat(index)[first * batch : needed], batch, seed)
    return TensorDataset(x[laid], y[laid])


def as_met(order: Tensor, batch: int, seed: int) -> Tensor:
    """Return numbers of rows (n,), placed so that the shuffle of `fit` restores the given order.

    order: (n,), numbers in the order of the steps; batch: rows of a step; seed: of `fit`.
    """
    # the position that `fit` reads first, second, ...
    met = torch.tensor([i for b in Order(len(order), batch, seed).epoch(0) for i in b])
    laid = torch.empty_like(order)
    laid[met] = order
    return laid
