"""Laws of a change: the parts it keeps, how it is undone, saved, loaded, and folded or refused."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..core import Card
from ..core.change import Change, Plan
from ..core.errors import FoldError, IntarsiaError
from ..core.foreign import config_of
from ..data.small_models import SmallModel, small_decoder
from ..folders.saved import load, save
from ..folders.verbs import apply, as_change, upcycle
from ..gating import task_ids
from ..hosts.anatomy.blocks import base_of
from ..routers import TopK
from .cards import CARD_LAWS, tiny
from .made import moved, normal, seeded, torch_seed
from .verdict import Broken, Law, laws_of, require, require_close, require_finite

SIDE, CLASSES, BATCH = 32, 3, 3
TOKENS, LENGTH = 32, 24


# the same weights for every call, so that models can be compared
def vit() -> nn.Module:
    """Return a ViT of two blocks of width 32, the same weights each time."""
    with torch_seed(0):
        sizes: dict[str, Any] = {"img_size": SIDE, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes)


def decoder() -> nn.Module:
    """Return a language model of two blocks, the same weights each time."""
    return small_decoder(SmallModel(16, 2, 2, 32), tokens=TOKENS, length=LENGTH)


def convnet() -> nn.Module:
    """Return a small CNN with a depthwise and a pointwise convolution, the same each time."""
    with torch_seed(0):
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 12, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)),
        )


# the first that a change takes is its host
HOSTS: tuple[Callable[[], nn.Module], ...] = (
    vit,
    lambda: moved(upcycle(vit(), TopK(4))),
    decoder,
    convnet,
)


def pictures() -> Tensor:
    """Return a batch of random pictures."""
    return normal(BATCH, 3, SIDE, SIDE)


def tokens() -> Tensor:
    """Return a batch of random token ids, (BATCH, LENGTH)."""
    return torch.randint(0, TOKENS, (BATCH, LENGTH), generator=seeded(1))


def reads_tokens(model: nn.Module) -> bool:
    """Return True for a language model."""
    return hasattr(config_of(base_of(model)), "vocab_size")


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    """Compute a model's logits in evaluation, on fixed tokens or pictures."""
    if reads_tokens(model):
        return model.eval()(input_ids=tokens()).logits
    # methods that route by task need one
    with task_ids(model, torch.zeros(BATCH, dtype=torch.int64)):
        return model.eval()(pictures())


def batches_for(change: Change, host: nn.Module) -> list[Any]:
    """Return the batches that a change may decide by, with labels if it needs them."""
    if reads_tokens(host):
        return [tokens()]
    labelled = "labels" in change.needs
    return [(pictures(), torch.arange(BATCH) % CLASSES) if labelled else pictures()]


def change_of(card: Card) -> Change:
    """Return the change that the card's tiny settings stand for."""
    return as_change(tiny(card))


def changed(host: nn.Module, change: Change, seed: int = 0) -> nn.Module:
    """Apply a change to a model, with batches that it may use; return the changed model."""
    return apply(host, change, batches_for(change, host), seed=seed, name="one")


def host_of(card: Card) -> Callable[[], nn.Module]:
    """Return the first function of HOSTS that builds a model the card's change accepts.

    HOSTS: functions without arguments, each builds a small model (a ViT, a decoder, a CNN).
    Raises: Broken if the change accepts none of them.
    """
    return _host_for(change_of(card))


@lru_cache(maxsize=4)  # the laws of one card ask one after the other
def _host_for(change: Change) -> Callable[[], nn.Module]:
    """Return the first function of HOSTS that makes a model to which the change can be applied."""
    refused: list[str] = []
    for make in HOSTS:
        try:
            changed(make(), change)
        except IntarsiaError as error:
            refused.append(str(error))
        else:
            return make
    raise Broken(
        refused, "a ViT, an upcycled one, a decoder or a small CNN, taken", "Mend tiny={...}."
    )


def takes_a_host(card: Card) -> None:
    """Check that the card's change can be applied to a tiny host, with finite outputs."""
    # the first model of HOSTS that the change accepts
    model = changed(host_of(card)(), change_of(card))
    require_finite(outputs(model), "outputs", "Look at the start.")


def plans_without_a_trace(card: Card) -> None:
    """Check that planning the change does not alter the model, and one seed gives one result."""
    make = host_of(card)
    host = make()
    change = change_of(card)
    change.plan(host, batches_for(change, host), seed=3)
    _require_as_before(host, make(), "after a plan")
    first, second = (changed(make(), change_of(card), seed=3) for _ in range(2))
    _require_as_before(first, second, "of one seed")


@dataclass(frozen=True)
class _Fails(Change):
    """A change that raises as soon as the one inside was applied."""

    inside: Change
    planned: Plan | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.inside.needs

    @property
    def preserves(self) -> frozenset[str]:
        return frozenset()

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Let the wrapped change make its plan; return a plan of this wrapper that stores it."""
        return Plan(replace(self, planned=self.inside.plan(host, batches, seed=seed)), seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Apply the wrapped change, then raise KeyError, as a fault half way through would."""
        assert self.planned is not None
        self.planned.change.apply(host, self.planned, name=name)
        raise KeyError("planted")

    def fold(self, host: nn.Module) -> nn.Module:
        return host


def leaves_no_trace_of_an_error(card: Card) -> None:
    """Check that a change that fails half way leaves the model as it was, weights and hooks."""
    make = host_of(card)
    host = make()
    try:
        changed(host, _Fails(change_of(card)))
    except KeyError:
        _require_as_before(host, make(), "after an error")
        return
    raise Broken("an error that was swallowed", "it", "Let errors through.")


def preserves_what_it_says(card: Card) -> None:
    """Check that `preserves` names "outputs" and "shape" exactly if the change keeps them.

    `preserves` is an attribute of the change. Outputs are kept if logits differ by at most 1e-4
    right after the change; the shape, if the state dict has the same names and shapes.
    """
    make, change = host_of(card), change_of(card)
    before, after = make(), changed(make(), change)
    # right after the change, before any training
    equal = bool((outputs(after) - outputs(before)).abs().max() <= 1e-4)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (before, after)]
    for name, preserved in (("outputs", equal), ("shape", shapes[0] == shapes[1])):
        holds = preserved == (name in change.preserves)
        got = f"preserves {sorted(change.preserves)}; {name} kept: {preserved}"
        require(holds, got, f"{name!r} exactly where it is kept", "Mend `preserves`, or the start.")


def comes_back_from_its_folder(card: Card) -> None:
    """Check that a changed and trained model has the same outputs after it was saved and loaded."""
    make = host_of(card)
    # moved weights: an adapter that starts at zero would fold and load trivially
    model = moved(changed(make(), change_of(card)))
    with tempfile.TemporaryDirectory() as folder:
        save(model, f"{folder}/saved")
        # not make(): of an upcycled ViT the folder has that change, too, and needs a plain one
        plain = decoder() if reads_tokens(model) else convnet() if make is convnet else vit()
        again = load(plain, f"{folder}/saved")
    require_close(outputs(again), outputs(model), "outputs after loading", "Save it all.")


def folds_or_refuses(card: Card) -> None:
    """Check that the change's `fold` gives a model with the same outputs, or raises FoldError."""
    change = change_of(card)
    model = moved(changed(host_of(card)(), change))
    want = outputs(model)
    try:
        folded = change.fold(copy.deepcopy(model))
    except FoldError:
        return
    off = float((outputs(folded) - want).abs().max())
    # rounding grows with the outputs
    holds = off <= 1e-4 * max(1.0, float(want.abs().max()))
    got = f"outputs that differ by {off:.1e}"
    require(holds, got, "the same", "Refuse with a FoldError, or compare with the unfolded model.")


def _require_as_before(model: nn.Module, reference: nn.Module, moment: str) -> None:
    """Require that a model has the same modules, weights, flags and hooks as another one."""
    for name, read in (
        ("modules", lambda m: [(n, type(x)) for n, x in m.named_modules()]),
        ("flags", lambda m: [(n, p.requires_grad) for n, p in m.named_parameters()]),
        ("modes", lambda m: [x.training for x in m.modules()]),
        ("hooks", lambda m: [_hooks(x) for x in m.modules()]),
    ):
        require(read(model) == read(reference), f"other {name} {moment}", "the same", "Undo it.")
    ours, theirs = model.state_dict(), reference.state_dict()
    differ = [n for n in theirs if n not in ours or not _equal(ours[n], theirs[n])]
    require(not differ, f"other weights {differ} {moment}", "the same", "Undo them.")
    # equal state dicts are not enough: buffers that are not saved, and hooks, change outputs
    close = torch.equal(outputs(model), outputs(reference))
    require(close, f"other outputs {moment}", "the same bits", "Undo it.")


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def _equal(first: Any, second: Any) -> bool:
    """Compare two values of a state dict, tensors bit by bit."""
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


CHANGE_LAWS = laws_of(__name__)
LAWS: tuple[Law, ...] = (*CARD_LAWS, *CHANGE_LAWS)
