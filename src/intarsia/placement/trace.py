"""Recorded routing: the experts of every token in every layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..core import Routing
from ..core.checks import at_least, between
from ..core.errors import ConfigError, DataError
from ..core.files import writing
from ..core.reading import open_tensors
from ..core.sealing import OPEN, SEAL, check_file, seal_file
from .trace_file import FORMAT, no_trace, read_metadata

NONE = -1  # instead of an expert: the token has fewer than k in this layer
MOST_EXPERTS = 2**15 - 1  # that int16 can number
RESERVED = (
    "format",
    "experts",
    "names",
    SEAL,
)  # metadata of the format itself; the rest is `about`


@dataclass(frozen=True)
class Trace:
    """Trace: the routing of N tokens in L layers, recorded in the order of time.

    expert: (N, L, k) int16, -1 where a token has fewer than k;  experts: E of every layer;
    sequence: (N,), ascending, position: (N,), ascending inside a sequence, so that a trace of a
    prefill is also the trace of decoding the same text;  weight: (N, L, k) gate weights or None;
    token: (N,) ids or None;  names: module paths of the layers;  about: metadata of the model, such
    as its name, "width" and "hidden".

    Raises: DataError, with the row, for an expert that is not there, tokens out of order, or
    tensors that do not belong together.
    """

    expert: Tensor
    experts: int
    sequence: Tensor
    position: Tensor
    weight: Tensor | None = None
    token: Tensor | None = None
    names: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())

    def __post_init__(self) -> None:
        """Check shapes, experts and the order of the tokens.  Raises: DataError."""
        if self.expert.dim() != 3 or not self.expert.numel():
            got, fix = f"experts of shape {tuple(self.expert.shape)}", "Record some tokens first."
            raise DataError("trace", got=got, want="(tokens, layers, k), none of them 0", fix=fix)
        between("experts of a trace", self.experts, 1, MOST_EXPERTS)
        rows = len(self.expert)
        for name in ("sequence", "position", "weight", "token"):
            tensor = getattr(self, name)
            shape = tuple(self.expert.shape) if name == "weight" else (rows,)
            if tensor is not None and tuple(tensor.shape) != shape:
                got, fix = f"{_shape_text(tensor)} of {name}", "Record them together."
                want = f"{' x '.join(map(str, shape))}, one for each token"
                raise DataError("trace", got=got, want=want, fix=fix)
        wide = self.expert if self.expert.dtype == torch.int16 else self.expert.long()
        outside = ((wide < NONE) | (wide >= self.experts)).flatten(1).any(1)
        object.__setattr__(self, "expert", wide.to(torch.int16))
        for name in ("sequence", "position"):
            object.__setattr__(self, name, getattr(self, name).long())
        # in order: sequences never fall, positions rise inside each
        step, ahead = self.sequence.diff(), self.position.diff()
        unsorted = torch.cat([outside[:1] & False, (step < 0) | ((step == 0) & (ahead <= 0))])
        for bad, want in (
            (outside, f"experts below {self.experts}"),
            (unsorted, "sequences in order, and positions in order inside each"),
        ):
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                got = f"row {row}: sequence {int(self.sequence[row])}, experts "
                got += str(self.expert[row].flatten().tolist()[:8])
                fix = "Record it again, or sort its rows."
                raise DataError("trace", got=got, want=want, fix=fix)

    @property
    def layers(self) -> int:
        return self.expert.shape[1]

    @property
    def active(self) -> int:
        """Number k of experts that a token has at most."""
        return self.expert.shape[2]

    def __len__(self) -> int:
        return len(self.expert)

    def routing(self, layer: int) -> Routing:
        """Return the routing of a layer; without recorded weights a token's experts count alike."""
        present = self.expert[:, layer] >= 0
        token, place = present.nonzero(as_tuple=True)
        expert = self.expert[token, layer, place].long()
        if self.weight is None:
            weight = 1.0 / present.sum(1)[token].float()
        else:
            weight = self.weight[token, layer, place].float()
        return Routing(token, expert, weight, len(self), self.experts)

    def membership(self, layer: int) -> Tensor:
        """Return which token has which expert of a layer, as (N, E) float64, 0 or 1."""
        expert = self.expert[:, layer].long()
        # a missing expert, -1, falls into a further column, which is cut off
        matrix = torch.zeros(len(expert), self.experts + 1, dtype=torch.float64)
        matrix.scatter_(1, torch.where(expert < 0, self.experts, expert), 1.0)
        return matrix[:, : self.experts]

    def load(self) -> Tensor:
        """Return the number of tokens of each expert, (L, E) int64."""
        return torch.stack([self.membership(layer).sum(0) for layer in range(self.layers)]).long()

    def transitions(self, layer: int) -> Tensor:
        """Count the tokens that go from each expert of a layer to each expert of the next, (E, E).

        A token has k experts in both layers; its k x k pairs share a weight of 1. layer: index of
        the first of the two. Returns float64.
        """
        between("layer", layer, 0, self.layers - 2)
        now, then = (_shares(self.membership(number)) for number in (layer, layer + 1))
        # a token with k experts in both layers adds 1 / k^2 to each of the k x k pairs
        return now.T @ then

    def coactivation(self, layer: int) -> Tensor:
        """Count, for each two experts of a layer, the tokens that have both.  (E, E) int64.

        The diagonal has the number of tokens of each expert.
        """
        membership = self.membership(layer)
        return (membership.T @ membership).long()

    def steps(self, streams: int) -> Iterator[Tensor]:
        """Yield which rows of the trace are decoded together in each step.

        streams: sequences decoded at once. A step has one token of each sequence that has not
          ended; when all have, the next `streams` sequences begin.
        """
        at_least("streams", streams, 1)
        # first and last row of each sequence, where rows are contiguous
        starts = torch.cat([torch.tensor([True]), self.sequence.diff() != 0]).nonzero().flatten()
        ends = torch.cat([starts[1:], torch.tensor([len(self)])])
        for first in range(0, len(starts), streams):
            begin, end = starts[first : first + streams], ends[first : first + streams]
            for step in range(int((end - begin).max())):
                rows = begin + step
                yield rows[rows < end]

    def rows(self, index: Tensor | slice) -> Trace:
        """Return a trace of a part of the rows (tokens).

        index: (M,) int64 ascending, (N,) bool, or a slice.
        """
        tensors = {
            name: None if (value := getattr(self, name)) is None else value[index]
            for name in ("expert", "sequence", "position", "weight", "token")
        }
        return replace(self, **tensors)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Trace, Trace]:
        """Split whole sequences at random into two traces.

        share: of the sequences that go to the first; seed: of the random draw.
        Raises: ConfigError where one of them would be empty.
        """
        names = self.sequence.unique()
        count = round(share * len(names))
        if not 0 < count < len(names):
            got, fix = f"{count} of {len(names)} sequences", "Record more sequences."
            raise ConfigError("split of a trace", got=got, want="some in each part", fix=fix)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
        first = torch.isin(self.sequence, names[order[:count]])
        return self.rows(first), self.rows(~first)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: experts in one byte each, or in two where there are many."""
        kind = torch.uint8 if self.experts < 255 else torch.uint16
        # the largest number means: no expert
        none = torch.iinfo(kind).max
        tensors_of: dict[str, Tensor] = {
            "expert": torch.where(self.expert < 0, none, self.expert.int()).to(kind),
            "sequence": self.sequence.int(),
            "position": self.position.int(),
        }
        for name, dtype in (("weight", torch.float16), ("token", torch.int32)):
            if (value := getattr(self, name)) is not None:
                tensors_of[name] = value.to(dtype)
        reserved = {"format": FORMAT, "experts": str(self.experts), "names": json.dumps(self.names)}
        metadata = dict(self.about) | reserved
        with writing(path) as scratch:
            tensors = {name: tensor.contiguous() for name, tensor in tensors_of.items()}
            save_file(tensors, scratch, metadata=metadata | OPEN)
            seal_file(scratch)
        return Path(path)

    @classmethod
    def load_file(cls, path: str | Path) -> Trace:
        """Read the trace that `save` wrote to a safetensors file.

        Raises: DataError for anything else; CheckpointError for a file that was changed.
        """
        try:
            metadata = read_metadata(path)
            with open_tensors(path) as file:
                check_file(Path(path))
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expert = tensors["expert"]
            none = torch.iinfo(expert.dtype).max
            expert = expert.int()
            return cls(
                # the largest number of the stored type means: no expert
                expert=torch.where(expert == none, NONE, expert),
                experts=int(metadata["experts"]),
                sequence=tensors["sequence"],
                position=tensors["position"],
                weight=tensors.get("weight"),
                token=None if (token := tensors.get("token")) is None else token.long(),
                names=tuple(json.loads(metadata.get("names", "[]"))),
                about={n: v for n, v in metadata.items() if n not in RESERVED},
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise no_trace(path, error) from error


def _shape_text(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one"


def _shares(membership: Tensor) -> Tensor:
    """Divide each token's weight of 1 equally among its experts, (N, E)."""
    return membership / membership.sum(1, keepdim=True).clamp(min=1)
