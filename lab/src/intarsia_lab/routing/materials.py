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
        """The test part, in which a fortieth of the input tokens are replaced at random.

        The tokens to predict stay.
        """
        assert self.kinds is not None
        x, y = self.test.tensors
        draws = torch.Generator().manual_seed(0)
        hit = torch.rand(x.shape, generator=draws) < SWAPPED
        replacement = torch.randint(len(self.kinds), x.shape, generator=draws)
        return TensorDataset(torch.where(hit, replacement, x), y)


def is_text(name: str) -> bool:
    """Return True for a corpus, False for a set of pictures."""
    return name in corpora.names()


def edition(name: str) -> dict[str, str]:
    """Return the edition of a corpus, if it has one, as part of a run's inputs."""
    version = corpora.CORPORA[name].edition if is_text(name) else ""
    return {"edition": version} if version else {}


def material(name: str, scale: Scale) -> Material:
    """Return a corpus or a set of pictures by name, obtained and cut up the first time.

    A text is cut into segments, which are drawn into parts by one fixed lot: neighbours do not
    stand on both sides, and every part has all of the text's subjects. The BPE is learned on the
    train part. Raises: UnknownName, AssetError, DataError.
    """
    return _rows(name, scale) if is_text(name) else _pictures(name, scale)


def _rows(name: str, scale: Scale) -> Material:
    """Return a corpus as rows of tokens, cut once and then read from the cache.

    name: of the corpus; scale: length of rows, vocabulary, and number of test rows.
    """
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
    bpe = trained_once(folder / f"{name}-{key}.json", (), scale.vocabulary)
    rows = {part: tensors[part].long() for part in PARTS}
    rows["test"] = rows["test"][: scale.test]
    datasets = {part: TensorDataset(x, x) for part, x in rows.items()}
    kinds, sizes = torch.tensor(bpe.kinds), torch.tensor(bpe.sizes)
    return Material(name, datasets["train"], datasets["val"], datasets["test"], KINDS, kinds, sizes)


def _cut(name: str, scale: Scale, bpe_file: Path, target: Path) -> None:
    """Split a corpus into parts, tokenise them and save the rows of tokens.

    bpe_file: of the tokenizer, which is trained on the training part; target: safetensors file.
    Raises: DataError for a corpus of questions and answers.
    """
    text = corpora.read(name, announce)
    if not isinstance(text, str):
        subject, got = f"corpus {name!r}", "questions and answers"
        raise DataError(
            subject, got=got, want="one text", fix=f"Choose another of {corpora.names()}."
        )
    parts = segments(text)
    bpe = trained_once(bpe_file, parts["train"], scale.vocabulary)
    save_file({p: in_rows(bpe, pieces, scale.length) for p, pieces in parts.items()}, str(target))


def segments(text: str) -> dict[str, list[str]]:
    """Split a text into pieces of SEGMENT characters, and distribute these over the parts.

    Raises: DataError for one of less than three pieces.
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
        count = limit if part == "train" else min(limit, max(1, len(pieces) // 10))
        by_part[part], lot = [pieces[i] for i in lot[:count]], lot[count:]
    return by_part


def in_rows(bpe: BytePairs, texts: Sequence[str], length: int) -> Tensor:
    """Their tokens one after another, (n, length) int16."""
    ids = torch.tensor([i for text in texts for i in bpe(text)["input_ids"]], dtype=torch.int16)
    return ids[: len(ids) // length * length].view(-1, length).contiguous()


def _pictures(name: str, scale: Scale) -> Material:
    """Return a set of pictures, normalised by mean and deviation of the training part.

    The last tenth of the training pictures, at most `VAL_PICTURES`, is for validation.
    scale: number of test pictures.
    """
    train, test = sets.load(name, part="train"), sets.load(name, part="test")
    x, y = _tensor(train), torch.as_tensor(np.asarray(train.labels)).long()
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
    return x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()


def stream(data: TensorDataset, first: int, steps: int, batch: int, seed: int) -> TensorDataset:
    """Return the rows of steps first ... first + steps - 1, ordered for one epoch of `fit`.

    `fit` shuffles; the order is such that it meets the rows of each step in that step. They depend
    on the seed and the step's number alone.  data: rows to draw from; batch: rows of a step.
    """
    x, y = data.tensors
    needed, index = (first + steps) * batch, list[Tensor]()
    for turn in range(-(-needed // len(x))):
        draws = torch.Generator().manual_seed(mix(seed, turn))
        index.append(torch.randperm(len(x), generator=draws))
    laid = as_met(torch.cat(index)[first * batch : needed], batch, seed)
    return TensorDataset(x[laid], y[laid])


def as_met(order: Tensor, batch: int, seed: int) -> Tensor:
    """Return numbers of rows (n,), placed so that the shuffle of `fit` restores the given order.

    order: (n,), numbers in the order of the steps; batch: rows of a step; seed: of `fit`.
    """
    met = torch.tensor([i for b in Order(len(order), batch, seed).epoch(0) for i in b])
    laid = torch.empty_like(order)
    laid[met] = order
    return laid
