"""Joining the modules of a model to one `Context`, which every forward sets from its arguments."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.foreign import is_encoder_decoder
from .context import Context, ReadsContext, contexts
from .layer_state import PassesState


class BeforeForward:
    """A forward pre-hook that sets the `Context` of a model from the arguments of the forward.

    stays: it is not taken off with the adapters of the model.
    """

    def __init__(self, context: Context, *, stays: bool) -> None:
        self.context, self.stays = context, stays

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Start a new batch before a forward: set its padding mask (B, T) and token ids (B, T)."""
        context = self.context
        context.start()
        if context.task_ids is not None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            context.check_task_ids(len(tensors[0]) if tensors else 0)
        # signature binding finds a mask that was passed by position
        if len(args) > 1:  # a mask may be among them
            with contextlib.suppress(TypeError):  # the forward itself will report the fault
                bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
                kwargs = {**bound, **kwargs}  # what **kwargs takes is bound under that one name
        mask = kwargs.get("attention_mask")
        context.valid = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        ids = kwargs.get("input_ids", args[0] if args else None)
        text = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.dim() == 2
        context.input_ids = ids if text else None


def join(model: nn.Module) -> Context:
    """Give a model's modules one shared `Context` (padding, ids and draws of the batch).

    model: any module. Call it once after all routers and adapters are in the model and before an
    optimiser sees them (adapt and upcycle do), and again after you have put in more by hand.
    Some routers hand a state to the router of the next layer. Such routers of one kind are a
    thread: they are numbered here in the order of the layers, and the first one owns the object
    that holds the states. Modules that were joined before stay on their thread. The encoder and the
    decoder of one model have a context and threads each. Returns the context, or the decoder's.
    """
    if stacks := _encoder_and_decoder(model):
        return [join(stack) for stack in stacks][-1]
    # layers of an earlier join keep their thread; only new ones get a number
    number_layers([m for m in model.modules() if isinstance(m, PassesState)])
    joined = [hook.context for _, hook in _hooks(model)] + [c for c in contexts(model) if c.joined]
    context = joined[0] if joined else Context()
    context.joined = True
    # modules that pass a state on keep it in the context, which is cleared at each forward
    threads = dict[int, Any]()
    for module in model.modules():
        if isinstance(module, ReadsContext):
            module.context = context
        if isinstance(module, PassesState):
            threads[id(module.thread)] = module.thread
    context.states = list(threads.values())
    return context


def number_layers(modules: Sequence[PassesState]) -> None:
    """Chain modules that pass a state on: each one gets the state of the module before it.

    modules: all such modules of a model, in the order of its layers. A chain is called a thread.
    Modules that are in no thread yet are grouped by their property `kin`, a key such as class and
    width; each group becomes one thread, with its modules numbered 0, 1, ...
    """
    # a GRU cell of one width cannot serve a thread of another: one thread for each kin
    fresh: dict[Hashable, list[PassesState]] = {}
    for module in modules:
        if not module.joined:
            fresh.setdefault(module.kin, []).append(module)
    for layers in fresh.values():
        _follow(layers)


def _follow(layers: Sequence[PassesState]) -> None:
    """Make modules the layers 0, 1, ... of one thread, along which a state is passed on."""
    for number, module in enumerate(layers):
        module.follow(layers[0], number)


def rejoin(model: nn.Module) -> Context:
    """Renumber modules that pass a state on to the next layer, after some of them were removed.

    Such modules are chained in threads. The object that holds a thread's states belongs to its
    first module, which may be another one now. Returns the model's `Context`, as `join` does.
    """
    # by thread, not by kin: two threads of one kin must not become one
    threads: dict[int, list[PassesState]] = {}
    for module in model.modules():
        if isinstance(module, PassesState) and module.joined:
            threads.setdefault(id(module.thread), []).append(module)
    for layers in threads.values():
        _follow(sorted(layers, key=lambda module: module.layer))
    return join(model)


def start(model: nn.Module) -> None:
    """Begin a forward pass of a model with routers: forget draws and states of the batch before.

    After `intarsia.adapt` or `intarsia.upcycle` each forward of the model does this on its own; a
    loop that calls the layers by hand calls this function before each pass.
    Raises: ConfigError for several modules that pass a state on but were never joined by `join`.
    """
    for context in contexts(model):
        context.start()
    # a second module of one kind without a thread would never see the first one's state
    alone: set[Hashable] = set()
    for module in model.modules():
        if not isinstance(module, PassesState) or module.joined:
            continue
        if module.kin in alone:
            name, got = f"{type(module).__name__}s", "several, each on a thread of its own"
            fix = "Call gating.join(model) once, before the optimiser is made."
            raise ConfigError(name, got=got, want="one thread along the model's depth", fix=fix)
        alone.add(module.kin)


def watch(model: nn.Module, *, stays: bool = False) -> Callable[[], None]:
    """Join a model's modules, and set their `Context` before every forward, by a hook.

    A `Context` holds padding, ids and random draws of the batch; draws are kept until the next
    forward. model: any module; without modules that read a `Context` it gets no hook. stays: True
    keeps the hook when adapters are removed. Returns a function that removes the hook. A second
    call joins again and adds no hook.
    """
    if stacks := _encoder_and_decoder(model):  # each is called with a mask and ids of its own
        hooks = ExitStack()
        for stack in stacks:
            hooks.callback(watch(stack, stays=stays))
        return hooks.close
    if not contexts(model):
        return lambda: None
    context = join(model)
    context.hold = True
    for _, hook in _hooks(model):  # watched before: keep the one hook
        hook.stays = hook.stays or stays
        return lambda: None
    hook = BeforeForward(context, stays=stays)
    return model.register_forward_pre_hook(hook, with_kwargs=True).remove


def unwatch(model: nn.Module, *, all: bool = False) -> None:
    """Remove the hook of `watch` from a model.  all: True also removes it if `stays` was True."""
    # encoder and decoder have a hook each
    for stack in _encoder_and_decoder(model):
        unwatch(stack, all=all)
    for key, hook in _hooks(model):
        if all or not hook.stays:
            del model._forward_pre_hooks[key]
            # torch keeps in a second table that the hook takes keywords
            model._forward_pre_hooks_with_kwargs.pop(key, None)


def _encoder_and_decoder(model: nn.Module) -> list[nn.Module]:
    """Return [encoder, decoder] of a transformers model that has both, else []."""
    if not is_encoder_decoder(model):
        return []
    # the first module that holds both is the model itself; others are inside it
    both = (m for m in model.modules() if {"encoder", "decoder"} <= m._modules.keys())
    return [part for m in both for part in (m.encoder, m.decoder)][:2]  # pyright: ignore


def _hooks(model: nn.Module) -> list[tuple[int, BeforeForward]]:
    """Return the forward pre-hooks that `watch` put on a model, with their keys in torch's dict."""
    return [(k, h) for k, h in model._forward_pre_hooks.items() if isinstance(h, BeforeForward)]
