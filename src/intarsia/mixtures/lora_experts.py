"""Experts that are adapters of one shared, frozen MLP: what all of them need is computed once."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ..adapters import Lora
from ..core import Cell, Method, Routing, Site
from ..core.errors import ConfigError, TargetError
from ..core.registry import settings_to_dict
from ..gating import Router
from ..kernels.experts import PairsByExpert, Weighted, add_mix, group_pairs
from ..routers import TaskRouter
from .dialects import DIALECTS, Dialect

Expert = Callable[[Tensor], Tensor]
ATTENTION = ("qkv", "projection")  # roles of the linear layers that get no experts

WANT = f"an MLP in one module, of {', '.join(' + '.join(d.linears) for d in DIALECTS)}"
FIX = "Adapt its linear layers with Lora(roles=('mlp_linear',)), or target other modules."


def dialect_of(site: Site) -> Dialect:
    """Return the form (`Dialect`) of the MLP at a site, by the names of its linear maps.

    site: the host module, with the linear maps inside it as site.layers, (name, inputs, outputs)
      each.
    Raises: TargetError for another kind of module, which it describes.
    """
    widths = {name: (inputs, outputs) for name, inputs, outputs in site.layers}
    for dialect in DIALECTS:
        # all layers that read the tokens have one width, and the one that writes them takes it in
        hidden = {widths.get(name, (0, 0))[1] for name in dialect.reads}
        # halves that are multiplied are one layer of twice the width
        fits = {widths.get(dialect.writes, (0, 0))[0] * (1 + dialect.halves)} == hidden
        if set(widths) == set(dialect.linears) and fits and site.channels == "last":
            return dialect
    layers = ", ".join(f"{name} ({i} -> {o})" for name, i, o in site.layers) or "a linear layer"
    if site.channels == "first":
        layers = "convolutions, whose channels are in front"
    raise TargetError(f"target {site.path!r}", got=layers, want=WANT, fix=FIX)


def places(site: Site, experts: int) -> dict[str, list[Site]]:
    """Return a `Site` for each expert at each linear map of an MLP: map's name -> E sites."""
    return {
        name: [Site(f"{site.path}.{e}.{name}", inputs, outputs) for e in range(experts)]
        for name, inputs, outputs in site.layers
    }


class MlpExperts(Cell):
    """E adapters on each linear map of an MLP, one routing for all of them.  (..., d) -> (..., d).

    over: the adapter that every expert is made of; router: which expert, by the MLP's input;
    shared: what the experts of a model share, where their adapter shares something (MoS).
    Its parameters: router, experts.NAME.EXPERT for each linear map of the MLP.

    Raises: TargetError for another kind of MLP; ConfigError for a rank above a layer's width.
    Raises: ConfigError for adapters that cannot be experts.
    """

    whole: ClassVar[bool] = True

    def __init__(
        self,
        router: Router,
        over: Method,
        site: Site,
        *,
        generator: torch.Generator,
        shared: nn.Module | None = None,
    ) -> None:
        """Build E adapters for each linear map of an MLP; expert e has the e-th one of each map."""
        super().__init__()
        if over.position != "parallel" or "mlp" in over.roles:
            want = "an adapter beside a linear layer"
            raise ConfigError("over", got=type(over).__name__, want=want, fix="Use Lora.")
        # the form of the MLP says in which order its linear maps are applied
        self.path, self.inputs, self.outputs = site.path, site.inputs, site.outputs
        self.dialect, self.router = dialect_of(site), router
        rank: int = settings_to_dict(over).get("rank") or 1  # of an adapter that has one
        options: dict[str, Any] = {} if shared is None else {"shared": shared}
        experts: dict[str, nn.Module] = {}
        of_map = places(site, router.experts)
        for name, inputs, outputs in site.layers:
            if rank > min(inputs, outputs):
                want = f"at most {min(inputs, outputs)}, the width of {name}"
                fix = "A full change of the layer has that rank already."
                raise ConfigError("rank", got=rank, want=want, fix=fix)
            experts[name] = nn.ModuleList(
                over.build(place, generator=generator, **options) for place in of_map[name]
            )
        self.experts = nn.ModuleDict(experts)
        # experts see tokens out of their samples, so that routing by task cannot work inside
        if any(isinstance(m, TaskRouter) and m.tasks > 1 for m in self.experts.modules()):
            got = f"{type(over).__name__}, which routes whole samples by their task"
            want = "an adapter that treats each token by itself"
            fix = "Use Lora; an expert sees the tokens that come to it, not samples."
            raise ConfigError("over", got=got, want=want, fix=fix)

    def of(self, name: str) -> Sequence[Cell]:
        """Return the E experts' adapters of one linear map of the MLP.  name: the map's."""
        return cast("Sequence[Cell]", self.experts[name])

    def weighted(self, name: str) -> Sequence[Weighted]:
        """Return each expert's adapter of one linear map, as a function of rows and weights."""
        return [cell.weighted for cell in self.of(name)]

    @abc.abstractmethod
    def mixed(self, module: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
        """Compute an MLP together with the experts, which are adapters of its linear maps.

        rows: (N, d), its input.  -> (N, d).
        """

    def around(self, module: nn.Module, x: Tensor) -> Tensor:
        """Compute an MLP with the experts that the router chooses by its input, (..., d)."""
        y = self.mixed(module, x.reshape(-1, x.shape[-1]), self.router(x))
        return y.view(*x.shape[:-1], y.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Raise TargetError, always: the experts need their MLP, which `around` gets."""
        name, want = f"experts at {self.path!r}", "the MLP whose products they share"
        fix = "Call cell.around(mlp, x)."
        raise TargetError(name, got="an input and no MLP", want=want, fix=fix)

    @torch.no_grad()
    def check(self, module: nn.Module) -> None:
        """Raise TargetError for an MLP that does not compute what its maps' names suggest."""
        children = dict(module.named_children())
        weight = cast(Tensor, children[self.dialect.reads[0]].weight)
        matches = self.dialect.fits(children)
        drops = any(m.p and m.training for m in module.modules() if isinstance(m, nn.Dropout))
        if matches and not weight.is_meta and not drops and weight.is_floating_point():
            # the same children do not prove the same computation: try two rows
            x = torch.linspace(-1, 1, 2 * self.inputs).to(weight).view(2, -1)
            plain = self.dialect.compute(module, x, lambda _name, y, _x: y)
            matches = torch.allclose(module(x), plain, rtol=1e-3, atol=1e-5, equal_nan=True)
        if not matches:
            got = f"{type(module).__name__} of {', '.join(children)}"
            raise TargetError(f"target {self.path!r}", got=got, want=WANT, fix=FIX)


def grouped_pairs(routing: Routing) -> PairsByExpert:
    """Return the pairs of a routing grouped by expert."""
    pairs = routing.token, routing.expert, routing.weight
    return group_pairs(*pairs, routing.tokens, routing.experts)


class DeltaExperts(MlpExperts):
    """P x + sum_e G_te cell_e(x) for each linear map P of the MLP (LLaVA-MoLE, section 3.2)."""

    def mixed(self, module: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
        """Compute an MLP with each linear map P changed to P x_t + sum_e G_te cell_e(x_t).

        G_te: the weight of expert e for row t; cell_e: the expert's adapter of that map.
        """
        pairs, dialect = grouped_pairs(routing), self.dialect
        # the reading maps with all experts' changes, the activation, then the writing map
        hidden = [module.get_submodule(name)(rows) for name in dialect.reads]
        add_mix(pairs, rows, *zip(hidden, map(self.weighted, dialect.reads), strict=True))
        a = dialect.inner(module, hidden)
        y = module.get_submodule(dialect.writes)(a)
        add_mix(pairs, a, (y, self.weighted(dialect.writes)))
        return dialect.after(module, y)


class OutputExperts(MlpExperts):
    """y_t = sum_e G_te MLP_e(x_t) + (1 - sum_e G_te) MLP(x_t), MLP_e with the cells of expert e.

    The products of the frozen maps that read x are computed once for all experts, and so is the
    product of the one that writes, W (sum_e G_te a_te), since it is linear and the weights sum to
    one. Where a token's weights sum to less (top-p, capacity, padding), the MLP has the rest.
    """

    def alone(self, module: nn.Module, expert: int, x: Tensor) -> Tensor:
        """Compute the frozen MLP with the LoRA of one expert added to each of its linear maps.

        The slow reference for `mixed`, which computes the frozen products once for all experts.
        """
        return self.dialect.compute(
            module, x, lambda name, y, x: y + self.of(name)[expert](x).to(y.dtype)
        )

    def mixed(self, module: nn.Module, rows: Tensor, routing: Routing) -> Tensor:
        """Compute y_t = sum_e G_te MLP_e(x_t) + (1 - sum_e G_te) MLP(x_t).

        MLP_e: the frozen MLP with the adapters of expert e; G_te: its weight for row t. By
        linearity the last frozen map is applied once, to the weighted sum of the hidden units of
        all MLP_e.
        """
        pairs, dialect = grouped_pairs(routing), self.dialect
        # the products of the frozen maps, once for all experts
        shared = [module.get_submodule(name)(rows) for name in dialect.reads]  # (T, h) each
        bases = zip(*(pairs.rows(base) for base in shared), strict=True)
        width = shared[0].shape[-1] // (1 + dialect.halves)
        blend = shared[0].new_zeros(len(rows), width)  # sum_e G_te a_te
        delta = rows.new_zeros(len(rows), self.outputs)
        for e, (x, base_rows) in enumerate(zip(pairs.rows(rows), bases, strict=True)):
            # expert by expert: its changes of the shared products, then its hidden units
            changes = [self.of(name)[e](x) for name in dialect.reads]
            hidden = [y + change.to(y.dtype) for y, change in zip(base_rows, changes, strict=True)]
            a = dialect.inner(module, hidden)  # (M_e, h)
            pairs.add(blend, e, lambda a, weight: a * weight[:, None], a)
            pairs.add(delta, e, self.of(dialect.writes)[e].weighted, a)
        # tokens with weights that sum to less than one get the rest from the plain MLP
        not_full = pairs.idle(len(rows)) if self.router.normalised else slice(None)
        rest = (1 - routing.dense().sum(1, keepdim=True))[not_full]
        if len(rest):
            plain = dialect.inner(module, [base[not_full] for base in shared])
            position = torch.arange(len(rows), device=rows.device)
            blend.index_add_(0, position[not_full], plain * rest.to(plain.dtype))
        # one product for all experts, by linearity
        y = module.get_submodule(dialect.writes)(blend)
        return dialect.after(module, y + delta.to(y.dtype))


class BesideAttention(Method):
    """Settings of a method with experts in MLPs, and a plain LoRA in the attention, or none."""

    attention: Lora | None

    @property
    def elsewhere(self) -> Self | None:
        """The settings for a host without attention."""
        settings: Any = self  # a dataclass
        return None if self.attention is None else replace(settings, attention=None)

    @property
    def roles(self) -> tuple[str, ...]:
        return ("mlp", *(() if self.attention is None else self.attention.roles))


def attention_cell(
    attention: Lora | None, site: Site, *, generator: torch.Generator
) -> Cell | None:
    """Build a plain LoRA for a linear layer of the attention; return None for an MLP.

    attention: the LoRA's settings, None = the method adapts no attention; site: the host module, a
      linear layer or an MLP, with its widths.
    Raises: TargetError for a linear layer where `attention` is None.
    """
    # A site with linear layers inside is an MLP.
    if site.layers:
        return None
    if attention is None:
        got, fix = "a linear layer, and attention=None", "Target MLPs, or give attention=Lora(...)."
        raise TargetError(f"target {site.path!r}", got=got, want="an MLP", fix=fix)
    return attention.build(site, generator=generator)
