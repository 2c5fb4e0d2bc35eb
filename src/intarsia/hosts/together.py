"""Several models on one trunk: shared modules see the rows of all, trained ones their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Cell
from ..core.foreign import logits_in
from ..core.modes import evaluating, forward_as
from ..gating import RandomSource, learned_routers
from .anatomy.blocks import base_of
from .anatomy.prefix import SPLITTABLE
from .attach.peft import IntarsiaLayer

# modules with a forward that only calls their children, on each row independently
OPEN = (nn.Sequential, nn.ModuleDict, Block, Attention, Mlp)
NEAR = 0.03  # share of the largest logit: rounding in bfloat16
Alone = Callable[[int], Any]


class OnOneTrunk:
    """Joint forward of models that share frozen modules and differ in the trained ones.

    Frozen modules that are equal in all models compute the rows of all in one call; any other
    module computes each model's rows in that model. models: of one method and one architecture.
    A call takes the input of each model, and returns a list of logits, one (B_i, ...) for each.
    """

    def __init__(self, models: Sequence[nn.Module], places: Sequence[Sequence[nn.Module]]) -> None:
        """Replace the forwards of modules that differ, until `close` is called."""
        self.models = models
        self.sizes: list[int] = []
        self.alone: Alone = lambda _: nullcontext()
        self.open = ExitStack()
        for modules in places:
            # one module of each model, for a place where each computes its own rows
            first, *_ = modules
            forward = partial(self._compute_each, modules, first.forward, draws=_draws(first))
            self.open.enter_context(forward_as(first, forward))

    def __call__(self, rows: Sequence[Tensor], alone: Alone) -> list[Tensor]:
        """Compute each model's logits in one forward.  rows: the input of each model."""
        # alone: number of a model -> context manager in which its random draws are made
        # cells read the context that the pre-hooks of their own model set for its batch
        for model, x in zip(self.models[1:], rows[1:], strict=True):
            _call_pre_hooks(model, x)
        # modules split the joint batch by these sizes while the forward runs
        self.sizes, self.alone = [len(x) for x in rows], alone
        try:
            out = self.models[0](torch.cat([*rows]))
        finally:
            self.sizes = []
        return list(logits_in(out).split([len(x) for x in rows]))

    def _compute_each(
        self,
        modules: Sequence[nn.Module],
        first_forward: Any,
        *args: Any,
        draws: bool,
        **kwargs: Any,
    ) -> Any:
        """Compute the rows of each model by its own module, and join the outputs."""
        if not self.sizes:
            return first_forward(*args, **kwargs)
        sizes, outputs = self.sizes, list[Tensor]()
        arguments = [self._rows_of_models(value) for value in args]
        for i, module in enumerate(modules):
            # the first module's forward is the one that was replaced by this method
            compute = module if i else first_forward
            with self.alone(i) if draws else nullcontext():
                outputs.append(compute(*(value[i] for value in arguments), **kwargs))
        if any(len(part) % size for part, size in zip(outputs, sizes, strict=True)):
            raise ValueError("not a row for each image")
        return torch.cat(outputs)

    def _rows_of_models(self, value: Any) -> Sequence[Any]:
        if not isinstance(value, Tensor):
            return [value] * len(self.sizes)
        # a module may see several rows for each image, such as windows or tokens
        times, rest = divmod(len(value), sum(self.sizes))
        if rest:
            raise ValueError("not a row for each image")
        return value.split([times * size for size in self.sizes])

    def close(self) -> None:
        """Give every model its own forward back."""
        self.open.close()


def on_one_trunk(models: Sequence[nn.Module], rows: Sequence[Tensor]) -> OnOneTrunk | None:
    """Join models into one forward, after a trial on some rows; None where it gains nothing.

    It gains nothing for one model alone, hosts other than timm's VisionTransformer and
    EfficientNet, routers that learn, hooks on trained modules, or if less than half of the frozen
    weights can be shared.
    """
    hosts = [base_of(model) for model in models]
    if len(models) < 2 or not all(isinstance(host, SPLITTABLE) for host in hosts):
        return None
    if any(learned_routers(model) for model in models):
        return None
    places: list[list[nn.Module]] = []
    # descend from the top modules to what each model has to compute for itself
    names = [
        name for name, child in hosts[0].named_children() if _sees_trained_rows(child, hosts[0])
    ]
    for name in names:
        modules = [host._modules.get(name) for host in hosts]
        if any(module is None for module in modules):
            return None
        places += _places(cast(list[nn.Module], modules))
    if any(module._forward_hooks or module._forward_pre_hooks for module in chain(*places)):
        return None
    # at least half of the frozen weights must be computed for all models at once
    separate = {id(p) for place in places for p in place[0].parameters()}
    blocks = [p for p in cast(nn.Module, hosts[0].blocks).parameters() if not p.requires_grad]
    if 2 * sum(p.numel() for p in blocks if id(p) in separate) > sum(p.numel() for p in blocks):
        return None
    together = OnOneTrunk(models, places)
    try:
        # the architecture may do more than was considered here: compare outputs once
        equal = _same_logits(together, rows)
    except (ValueError, RuntimeError):
        equal = False
    if not equal:
        together.close()
        return None
    return together


def _places(modules: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield lists of modules, one of each model, that compute each model's rows apart."""
    first = modules[0]
    learns = any(p.requires_grad for module in modules for p in module.parameters())
    if not learns and not _draws(first) and _equal_weights(modules):
        return
    children = [dict(module.named_children()) for module in modules]
    if _is_open(first) and all(child.keys() == children[0].keys() for child in children):
        for name in children[0]:
            yield from _places([child[name] for child in children])
    else:
        yield modules


def _is_open(module: nn.Module) -> bool:
    """Return True if a module's forward only calls its children, on each row independently."""
    if any(True for _ in module.parameters(recurse=False)):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, IntarsiaLayer):
        cells = list(module.intarsia_cells.children())
        # a whole or fused cell computes the layer's own part, too: children are not called
        return not any(isinstance(cell, Cell) and (cell.whole or cell.fused) for cell in cells)
    # the attention itself draws this dropout
    if isinstance(module, Attention) and module.attn_drop.p:
        return False
    return type(module) in OPEN


def _equal_weights(modules: Sequence[nn.Module]) -> bool:
    first, *rest = ([*module.parameters(), *module.buffers()] for module in modules)
    return all(len(first) == len(state) and all(map(torch.equal, first, state)) for state in rest)


def _draws(module: nn.Module) -> bool:
    """Return True if a module draws random numbers in training, or uses statistics of the batch."""
    for part in module.modules():
        # names of the rate in dropout of values, paths, patches and weights
        shares = (getattr(part, name, None) for name in ("p", "drop_prob", "prob"))
        if isinstance(part, RandomSource) or any(isinstance(s, int | float) and s for s in shares):
            return True
        if isinstance(part, _BatchNorm) and part.training:
            return True
    return False


def _sees_trained_rows(child: nn.Module, host: nn.Module) -> bool:
    """Return True for a module with inputs that may depend on weights that each model trains."""
    return child is not getattr(host, "patch_embed", None)


def _call_pre_hooks(model: nn.Module, x: Tensor) -> None:
    """Call the pre-hooks of a model for what they note; inputs that they change are not used."""
    # a model without a wrapper is its own host, with hooks that are called once
    for module in dict.fromkeys((model, base_of(model))):
        for number, hook in module._forward_pre_hooks.items():
            if number in module._forward_pre_hooks_with_kwargs:
                cast(Any, hook)(module, (x,), {})
            else:
                cast(Any, hook)(module, (x,))


@torch.no_grad()
def _same_logits(together: OnOneTrunk, rows: Sequence[Tensor]) -> bool:
    """Return True if the joint forward gives the same logits as each model alone."""
    models = together.models
    learns = [p for model in models for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in learns]
    noise = torch.Generator().manual_seed(0)
    # rows of unlike counts, so that one model's rows cannot pass for another's
    sample = [x[: 2 + i % 2] for i, x in enumerate(rows)]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        try:
            # adapters begin at 0, where a mix-up of models would not show
            for p in learns:
                p += 0.1 * torch.randn(p.shape, generator=noise).to(p)
            want = [logits_in(model(x)) for model, x in zip(models, sample, strict=True)]
            got = together(sample, lambda _: nullcontext())
        finally:
            for p, value in zip(learns, before, strict=True):
                # restores the bits, which subtracting the noise would not
                p.copy_(value)
    near = [(a - b).abs().max() <= NEAR * b.abs().max() for a, b in zip(got, want, strict=True)]
    return all(bool(near_enough) for near_enough in near)
