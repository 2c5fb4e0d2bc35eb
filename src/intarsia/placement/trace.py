"""Who went where: the experts of every token in every layer, kept to be looked at later."""

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

NONE = -1  # in the place of an expert: the token has fewer than k in this layer
MOST = 2**15 - 1  # experts
FORMAT = "intarsia trace"
OWN = ("format", "experts", "names", SEAL)  # metadata that are no `about`


@dataclass(frozen=True)
class Trace:
    """Routings of all layers over time.

    expert: (N, L, k) int16, -1 where a token has fewer than k;  experts: E of every layer;
    sequence: (N,), ascending, position: (N,), ascending inside a sequence, so that a trace of a
    prefill is also that of decoding the same text;  weight: (N, L, k) or None;  token: ids (N,) or
    None;  names: paths of the layers;  about: of the model, as its name, "width" and "hidden".

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
        if self.expert.dim() != 3 or not self.expert.numel():
            got, fix = f"experts of shape {tuple(self.expert.shape)}", "Record some tokens first."
            raise DataError("trace", got=got, want="(tokens, layers, k), none of them 0", fix=fix)
        between("experts of a trace", self.experts, 1, MOST)
        rows = len(self.expert)
        for name in ("sequence", "position", "weight", "token"):
            found = getattr(self, name)
            shape = tuple(self.expert.shape) if name == "weight" else (rows,)
            if found is not None and tuple(found.shape) != shape:
                got, fix = f"{_size(found)} of {name}", "Record them together."
                want = f"{' x '.join(map(str, shape))}, one for each token"
                raise DataError("trace", got=got, want=want, fix=fix)
        wide = self.expert if self.expert.dtype == torch.int16 else self.expert.long()
        outside = ((wide < NONE) | (wide >= self.experts)).flatten(1).any(1)
        object.__setattr__(self, "expert", wide.to(torch.int16))
        for name in ("sequence", "position"):
            object.__setattr__(self, name, getattr(self, name).long())
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
        """k: the most experts that a token has."""
        return self.expert.shape[2]

    def __len__(self) -> int:
        return len(self.expert)

    def routing(self, layer: int) -> Routing:
        """One layer's routing; where no weights were recorded, each expert has an equal share."""
        there = self.expert[:, layer] >= 0
        token, place = there.nonzero(as_tuple=True)
        expert = self.expert[token, layer, place].long()
        if self.weight is None:
            weight = 1.0 / there.sum(1)[token].float()
        else:
            weight = self.weight[token, layer, place].float()
        return Routing(token, expert, weight, len(self), self.experts)

    def chosen(self, layer: int) -> Tensor:
        """1 where a token has an expert.  Returns (N, E) float64."""
        return self._chosen(layer, slice(None))

    def _chosen(self, layer: int, rows: slice | Tensor) -> Tensor:
        expert = self.expert[rows, layer].long()
        found = torch.zeros(len(expert), self.experts + 1, dtype=torch.float64)
        found.scatter_(1, torch.where(expert < 0, self.experts, expert), 1.0)
        return found[:, : self.experts]

    def load(self) -> Tensor:
        """Tokens of each expert.  Returns (L, E) int64."""
        return torch.stack([self.chosen(layer).sum(0) for layer in range(self.layers)]).long()

    def transitions(self, layer: int) -> Tensor:
        """How often a token goes from an expert of `layer` to one of the next layer.

        The k x k pairs of a token share its weight of 1.  Returns (E, E) float64.
        """
        between("layer", layer, 0, self.layers - 2)
        now, then = (_shares(self.chosen(at)) for at in (layer, layer + 1))
        return now.T @ then

    def coactivation(self, layer: int) -> Tensor:
        """How many tokens have both experts.  Returns (E, E) int64, the loads on its diagonal."""
        chosen = self.chosen(layer)
        return (chosen.T @ chosen).long()

    def steps(self, streams: int) -> Iterator[Tensor]:
        """Rows of each decode step, where so many sequences are decoded at once, and then the next.

        A step has one token of each stream that has not ended.
        """
        at_least("streams", streams, 1)
        starts = torch.cat([torch.tensor([True]), self.sequence.diff() != 0]).nonzero().flatten()
        ends = torch.cat([starts[1:], torch.tensor([len(self)])])
        for first in range(0, len(starts), streams):
            begin, end = starts[first : first + streams], ends[first : first + streams]
            for step in range(int((end - begin).max())):
                rows = begin + step
                yield rows[rows < end]

    def rows(self, index: Tensor | slice) -> Trace:
        """These rows alone, in their order.  index: (M,) int64, bool (N,), or a slice."""
        kept = {
            name: None if (value := getattr(self, name)) is None else value[index]
            for name in ("expert", "sequence", "position", "weight", "token")
        }
        return replace(self, **kept)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Trace, Trace]:
        """Two traces of whole sequences: so large a share of them, drawn by the seed, and the rest.

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
        none = torch.iinfo(kind).max
        found: dict[str, Tensor] = {
            "expert": torch.where(self.expert < 0, none, self.expert.int()).to(kind),
            "sequence": self.sequence.int(),
            "position": self.position.int(),
        }
        for name, kept in (("weight", torch.float16), ("token", torch.int32)):
            if (value := getattr(self, name)) is not None:
                found[name] = value.to(kept)
        own = {"format": FORMAT, "experts": str(self.experts), "names": json.dumps(self.names)}
        said = dict(self.about) | own
        with writing(path) as scratch:
            tensors = {name: tensor.contiguous() for name, tensor in found.items()}
            save_file(tensors, scratch, metadata=said | OPEN)
            seal_file(scratch)
        return Path(path)

    @classmethod
    def load_file(cls, path: str | Path) -> Trace:
        """Read what `save` wrote.

        Raises: DataError for anything else; CheckpointError for a file that was changed.
        """
        try:
            with open_tensors(path) as file:
                said: dict[str, str] = file.metadata() or {}
                if said.get("format") != FORMAT:
                    raise ValueError(f"format {said.get('format')!r}")
                check_file(Path(path))
                found: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expert = found["expert"]
            none = torch.iinfo(expert.dtype).max
            expert = expert.int()
            return cls(
                expert=torch.where(expert == none, NONE, expert),
                experts=int(said["experts"]),
                sequence=found["sequence"],
                position=found["position"],
                weight=found.get("weight"),
                token=None if (token := found.get("token")) is None else token.long(),
                names=tuple(json.loads(said.get("names", "[]"))),
                about={n: v for n, v in said.items() if n not in OWN},
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            fix = "Record one: intarsia trace MODEL TEXT --save t.safetensors"
            want = "a file that `intarsia trace` wrote"
            raise DataError(f"trace {path}", got=error, want=want, fix=fix) from error


def _size(of: Tensor) -> str:
    return " x ".join(map(str, of.shape)) or "one"


def _shares(chosen: Tensor) -> Tensor:
    """Each token's weight of 1 in equal parts."""
    return chosen / chosen.sum(1, keepdim=True).clamp(min=1)
