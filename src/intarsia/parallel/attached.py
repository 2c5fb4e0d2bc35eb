"""A model with its mixtures' experts on several processes while it is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..placement.topology import Topology
from ..processes.exchange import Group, Meter, Wire
from ..processes.parallelism import Move, WholeModel
from ..processes.pieces import Piece, Stored
from ..processes.units import own_part, put_part, put_rows
from .layout import OwnExperts, units_of
from .places import places
from .running import check_alike

if TYPE_CHECKING:
    from .strategy import Strategy

IGNORED = "_ddp_params_and_buffers_to_ignore"  # of a module, read by DistributedDataParallel
LOCAL = "local"


class Attached(WholeModel):
    """The parts of a model's mixtures that this process has, by path.

    wholes: path of a part -> the experts' path in one process, where it is another.
    """

    def __init__(
        self,
        parts: Mapping[str, OwnExperts],
        group: Group = None,
        wholes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Index the experts' parameters of this process, by identity and by path."""
        self.parts, self.group, self.shared = dict(parts), group, True
        self.world = dist.get_world_size(group)
        self.of: dict[int, tuple[OwnExperts, str]] = {}  # id of a parameter -> its part and name
        self.names: dict[str, tuple[str, OwnExperts, str]] = {}  # its path -> the whole's
        for path, part in self.parts.items():
            for name, weight in part.local.named_parameters(recurse=False):
                self.of[id(weight)] = part, name
                full_path = f"{wholes.get(path, path)}.{name}"
                self.names[f"{path}.{LOCAL}.{name}"] = full_path, part, name

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Tensor | Piece]:
        """Return a state dict with a single process's names; divided weights become a `Piece`."""
        by_path: dict[str, Tensor | Piece] = {}
        for path, value in state.items():
            full_path, part, name = self.names.get(path, (path, None, ""))
            # weights that all processes have stay whole
            by_path[full_path] = value if part is None else self.piece(part, name, value)
        return by_path

    def piece(self, part: OwnExperts, name: str, value: Tensor) -> Piece:
        """Return this process's rows of a weight as a `Piece`, with the expert of each row."""
        units = units_of(part.local, name)
        return Piece(value, units, *part.lot(dist.get_rank(self.group)), self._experts(part))

    def _experts(self, part: OwnExperts) -> int:
        """Return E, the number of experts of a layer on all processes.  part: of this one."""
        numbers = [part.lot(rank)[0] for rank in range(self.world)]
        return 1 + max(int(experts.max()) for experts in numbers if len(experts))

    def own(self, state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
        """Return the tensors of a whole state dict that this process keeps, by their names here."""
        local_paths = {
            full_path: (path, part, name) for path, (full_path, part, name) in self.names.items()
        }
        by_path: dict[str, Tensor] = {}
        for path, value in state.items():
            local_path, part, name = local_paths.get(path, (path, None, ""))
            by_path[local_path] = self._own_rows(part, name, value)
        return by_path

    def _own_rows(self, part: OwnExperts | None, name: str, value: Tensor | Stored) -> Tensor:
        """Cut this process's rows out of a weight (E, ...) of all experts."""
        if part is None:
            return value.all() if isinstance(value, Stored) else value
        index, *sliced = part.lot(dist.get_rank(self.group))
        stored, experts = len(value), self._experts(part)
        # A file of another model would otherwise be cut at the wrong rows without a word.
        if stored != experts:
            got, want = f"{stored} experts in {name!r}", f"{experts}, as this model has"
            fix = "Open it with the model that it was written of; processes may differ."
            raise CheckpointError("experts of a checkpoint", got=got, want=want, fix=fix)
        units = units_of(part.local, name)
        if isinstance(value, Stored):
            # Only the rows of this process's experts leave the file; they are then numbered from 0.
            return own_part(units, value.rows(index), torch.arange(len(index)), *sliced)
        return own_part(units, value, index, *sliced)

    def past(self) -> dict[str, list[Tensor]]:
        """Return the experts' loads in the newest batches, (E,) each, by path of a layer's part."""
        loads = {path: part.past for path, part in self.parts.items()}
        # parts of other strategies remember no loads
        return {path: list(past) for path, past in loads.items() if past is not None}

    def follow(self, past: Mapping[str, Sequence[Tensor]]) -> None:
        """Continue from loads of the experts that `past` returned, for strategies that use them."""
        for path, part in self.parts.items():
            if path in past and part.past is not None:
                part.past = list(past[path])

    def moves(self, step: int) -> Iterator[Move]:
        """Yield the weights of experts that get new owners after a step, for `Fssdp.reshard`."""
        due = [(path, part) for path, part in self.parts.items() if part.due(step)]
        # Layers with the same number of experts are dealt out together, so that unevenness in
        # one layer can be made up by another.
        for experts in sorted({part.experts for _, part in due}):
            layers = [(path, part) for path, part in due if part.experts == experts]
            owners = layers[0][1].new_owners([part for _, part in layers])
            for (path, part), owner in zip(layers, owners, strict=True):
                # No rows are sent for a layer that keeps its owners; all processes agree on that.
                if part.owner is not None and torch.equal(owner, part.owner):
                    continue
                for name, weight in part.local.named_parameters(recurse=False):
                    yield f"{path}.{LOCAL}.{name}", weight, partial(part.moved, owner=owner)
                part.set_owner(owner)

    def owners(self) -> dict[str, Any]:
        """Return, for a checkpoint, which process owns which expert where that may change.

        "world": the number of processes; "of": path of a part -> (E,) owners.
        """
        owners = {path: part.owner for path, part in self.parts.items()}
        changeable = {path: owner for path, owner in owners.items() if owner is not None}
        return {"world": self.world, "of": changeable}

    def set_owners(self, owners: Mapping[str, Any]) -> None:
        """Set a checkpoint's owners, and make room; ignore owners of other process counts."""
        if owners.get("world") != self.world:
            return
        for path, owner in owners["of"].items():
            part = self.parts.get(path)
            if part is not None and part.owner is not None:
                part.set_owner(owner)
                count = len(part.lot(dist.get_rank(self.group))[0])
                for weight in part.local.parameters(recurse=False):
                    # The caller loads the values afterwards, of as many experts as are owned then.
                    put_rows(weight, weight.new_empty([count, *weight.shape[1:]]))

    def optimizer_pieces(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return an optimiser's state_dict in which states of experts' weights are `Piece`s."""
        rows = dict(state["state"])
        for number, parameter in enumerate(parameters):
            if number in rows and id(parameter) in self.of:
                part, name = self.of[id(parameter)]
                rows[number] = {
                    key: self.piece(part, name, value)
                    # a state of the weight's shape is cut as the weight is; a step count is not
                    if isinstance(value, Tensor) and value.dim() == parameter.dim()
                    else value
                    for key, value in rows[number].items()
                }
        return state | {"state": rows}

    def own_optimizer(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return this process's part of an optimiser's state_dict, as `own` does for the model."""
        rows = dict(state["state"])
        for number, parameter in enumerate(parameters):
            part, name = self.of.get(id(parameter), (None, ""))
            if number in rows:
                # moments have the weight's shape; a step counter has none
                rows[number] = {
                    key: self._own_rows(part, name, value)
                    if isinstance(value, Stored)
                    or (isinstance(value, Tensor) and value.dim() == parameter.dim())
                    else value
                    for key, value in rows[number].items()
                }
        return state | {"state": rows}

    def gathered(self, part: OwnExperts, name: str, value: Tensor) -> Tensor:
        """Collect all experts' rows of a weight or optimiser's state, (E, ...), everywhere."""
        shares = [part.lot(rank) for rank in range(self.world)]  # (experts, slice, slices)
        rank, experts = dist.get_rank(self.group), self._experts(part)
        full: Tensor | None = None
        for sender, share in enumerate(shares):
            if not len(share[0]):
                continue
            shape = (len(share[0]), *value.shape[1:])
            # Each process in turn sends its experts to all others, one weight at a time.
            rows = value.detach().contiguous() if sender == rank else value.new_empty(shape)
            source = sender if self.group is None else dist.get_global_rank(self.group, sender)
            dist.broadcast(rows, source, group=self.group)
            full = put_part(units_of(part.local, name), full, rows, experts, *share)
        assert full is not None
        return full

    def norm(self, parameters: Sequence[nn.Parameter], meter: Meter | None = None) -> Tensor:
        total_norm = torch.nn.utils.get_total_norm
        gradients = [(p.grad, id(p) in self.of) for p in parameters if p.grad is not None]
        sharded_norm, shared_norm = (
            total_norm([grad for grad, sharded in gradients if sharded is kind]).to(
                parameters[0].device
            )
            for kind in (True, False)
        )
        # Gradients of experts exist in one process each, so their squares are summed over
        # processes; all other gradients are alike everywhere and count once.
        squared = sharded_norm.double().square()  # also where this process has no expert
        with nullcontext() if meter is None else meter.waiting():
            dist.all_reduce(squared, group=self.group)
        return (squared + shared_norm.double().square()).sqrt()


@contextmanager
def attached(
    model: nn.Module,
    strategy: Strategy | None,
    *,
    topology: Topology | None = None,
    meter: Meter | None = None,
    group: Group = None,
    gather: bool = True,
) -> Iterator[WholeModel]:
    """Replace each layer's experts by this process's part inside the block, and put all back after.

    model: one with mixtures of ours, or a sparse model of transformers as it is.
    strategy: how experts are shared out; None = not at all, as with one process. topology: of the
      links between the processes, None = as the strategy says. meter: counts the bytes sent, layer
      by layer. group: the processes, None = all of torch.distributed.
    Gradients of experts, which come from all processes, are divided by their number, so that they
    belong to the mean loss, as DistributedDataParallel's do for the rest.
    gather: False leaves the parts where they are, so that no process needs room for all experts;
      write the model first, by `write_sharded`, or `save` with the parts.
    An error inside leaves the processes with their parts: resume from a checkpoint.
    Yields a handle with this process's parts, for saving; `WholeModel` where nothing is shared out.
    Raises: ConfigError where the model has no experts, its routers read experts' weights, or the
      strategy cannot divide its experts; TrainingError where processes have other models.
    """
    world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if strategy is None or world == 1:
        yield WholeModel()
        return
    expert_layers = places(model)
    # All that can be refused is refused before the first weight is cut or freed.
    strategy.check_trains()
    check_alike("model and strategy", _digest(model, strategy), group)
    links = topology or strategy.links(world, group)
    parts: dict[str, OwnExperts] = {}
    for number, place in enumerate(expert_layers):
        part = strategy.shard(place.experts, Wire(number, group, meter), links, len(expert_layers))
        place.put(part)
        parts[place.part] = part
        for weight in part.parameters():
            if weight.requires_grad:
                # An expert's owner receives the gradients of all processes' rows: their sum becomes
                # the mean, as DistributedDataParallel makes it for all other weights.
                weight.register_hook(lambda grad: grad / world)
        for weight in place.experts.parameters():
            weight.data = weight.data.new_empty(0)  # its room is given back
    state = Attached(parts, group, {place.part: place.path for place in expert_layers})
    # DistributedDataParallel must not average weights that are different experts in each process.
    setattr(model, IGNORED, list(state.names))
    yield state
    if not gather:
        return
    delattr(model, IGNORED)
    for place, part in zip(expert_layers, parts.values(), strict=True):
        for name, weight in part.local.named_parameters(recurse=False):
            # The Parameter objects stay the same: references to them remain valid.
            place.experts.get_parameter(name).data = state.gathered(part, name, weight)
        place.restore()


def _digest(model: nn.Module, strategy: Strategy) -> str:
    """Return a SHA-256 of a strategy and a model's weights, to compare them between processes."""
    # equal digests: one strategy, one model, the same weights
    total = hashlib.sha256(repr(strategy).encode())
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor):
            total.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            # numpy has no bfloat16, but every weight is some bytes.
            flat = weight.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return total.hexdigest()
