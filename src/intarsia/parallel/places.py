"""Where a model has experts that can be shared out: its mixtures, and experts of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError, TargetError
from ..gating import expert_readers
from ..gating.gate import GateRouter
from ..mixtures.experts import Experts
from ..mixtures.experts_function import arguments, stock_experts
from ..mixtures.fused_experts import FusedExperts
from ..mixtures.mixture import Mixture
from .layout import stacked

PART = "part"  # the name of a process's part below stock experts


class Place(Protocol):
    """Experts of a layer, and how a process's part of them comes in and goes again.

    path: of their weights in one process; part: of the part, while it is there.
    """

    path: str

    @property
    def part(self) -> str: ...
    @property
    def experts(self) -> Experts: ...

    def put(self, part: Experts) -> None: ...
    def restore(self) -> None: ...


@dataclass
class MixturePlace:
    """The experts of a `Mixture`."""

    path: str
    mixture: Mixture
    experts: Experts

    @property
    def part(self) -> str:
        return self.path

    def put(self, part: Experts) -> None:
        """Put a process's own experts in place of all; `restore` undoes it."""
        self.mixture.experts = part

    def restore(self) -> None:
        self.mixture.experts = self.experts


@dataclass
class StockPlace:
    """Experts that transformers calls: their module stays, its call goes to the part.

    As transformers' own parallel experts are called; no class is changed, hooks stay.
    """

    path: str
    module: nn.Module
    experts: FusedExperts

    @property
    def part(self) -> str:
        return f"{self.path}.{PART}"

    def put(self, part: Experts) -> None:
        """Let this process's share of the experts compute instead of the module's own weights."""
        for name in self.experts.names:
            delattr(self.module, name)
        self.module.add_module(PART, part)
        # An attribute of the instance shadows the method of the class for this module alone.
        self.module.forward = Called(part, self.experts.experts)

    def restore(self) -> None:
        """Give the module its own forward and weights back."""
        del self.module.forward
        delattr(self.module, PART)
        for name in self.experts.names:
            self.module.register_parameter(name, self.experts.get_parameter(name))


class Called:
    """The forward of stock experts on several processes.

    f(hidden (T, d), index (T, k), weights (T, k)) -> (T, d).
    """

    def __init__(self, part: Experts, experts: int) -> None:
        self.part, self.experts = part, experts

    def __call__(self, *positional: Any, **named: Any) -> Tensor:
        hidden, index, weights = arguments(positional, named)
        outputs = self.part.mix(hidden, pairs_of(index, weights, self.experts))
        return outputs.to(hidden.dtype)


def pairs_of(index: Tensor, weights: Tensor, experts: int) -> Routing:
    """Convert the choice of a gate of transformers to a routing.

    index, weights: (N, k), the experts of each token and their weights; experts: E. An index of E
      or more means no expert.
    """
    routing = Routing.from_topk(index, weights, experts)
    # An index of E or more names no expert: the pair is left out.
    valid = routing.expert < experts
    if bool(valid.all()):
        return routing
    token, expert, weight = routing.token[valid], routing.expert[valid], routing.weight[valid]
    return Routing(token, expert, weight, len(index), experts)


def places(model: nn.Module) -> list[Place]:
    """List a model's layers of experts, in its order, as places where a process's share can be put.

    model: has mixtures of ours, or experts of transformers. A `Place` has a layer's experts, and
    puts a process's share in their place, or the experts back.
    Raises: ConfigError for a model without experts, a mixture with a capacity, a router that reads
      experts' weights or chooses by the whole batch (`Switch`, `ExpertChoice`, `Transport`), or
      weights that cannot be cut; TargetError for experts of transformers with other weights than
      matrices.
    """
    by_path: dict[str, Place] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mixture):
            path = f"{name}.experts" if name else "experts"
            by_path[name] = MixturePlace(path, module, module.experts)
            # A capacity counts the rows of one process: the same batch on more processes would drop
            # other tokens.
            if module.capacity is not None:
                got, want = f"{name} with a capacity", "none: whom it drops depends on who is there"
                fix = "Build it without, capacity=None, or leave `parallel` out."
                raise ConfigError("parallel", got=got, want=want, fix=fix)
            if expert_readers(module.router):
                got, want = f"{name}, whose router reads experts", "routers that read tokens alone"
                raise ConfigError("parallel", got=got, want=want, fix="Use TopK, Hash or the like.")
        if isinstance(module, GateRouter) and not module.by_row:
            got = f"{type(module).__name__} at {name!r}, which chooses by all rows of a process"
            want, fix = "routers of each row alone", "Use TopK, or leave `parallel` out."
            raise ConfigError("parallel", got=got, want=want, fix=fix)
    # Experts of transformers' own models, which are no `Mixture`.
    for path, stock in _stock(model).items():
        by_path[path] = StockPlace(path, stock.module, FusedExperts(stock))
    if not by_path:
        got, want = "a model without mixtures", "one with experts to be shared out"
        fix = "Call intarsia.upcycle(model, ...), or leave `parallel` out: data-parallel."
        raise ConfigError("parallel", got=got, want=want, fix=fix)
    for place in by_path.values():
        stacked(place.experts)
    # The number of a layer names its messages, so all processes must number layers alike: by their
    # order in the model.
    order = {path: position for position, (path, _) in enumerate(model.named_modules())}
    return [by_path[path] for path in sorted(by_path, key=lambda path: order[path])]


def _stock(model: nn.Module) -> Mapping[str, Any]:
    """Return a model's layers of experts that transformers calls, by path."""
    try:
        return stock_experts(model)
    except TargetError as error:
        fix = "Share out a resident model of transformers, without offload or packed experts."
        want = "experts in one tensor for each matrix"
        raise ConfigError("parallel", got=error.got, want=want, fix=fix) from error
