"""Which adapters go together: every pair is tried on a small ViT, `python -m` writes the table."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from peft import PeftModel
from torch import nn

from ..catalog import cards
from ..core import Card
from ..core.errors import IntarsiaError
from ..gating import task_ids
from ..hosts import adapt, load
from ..hosts.combine import combine
from ..hosts.delta_cells import layers_of
from .cards import tiny

SIDE, CLASSES = 32, 3
INTRO = """# What goes together

Every pair of adapters was tried on a small ViT; `python -m intarsia.conformance.composition` tries
them again and writes this page.

"""
BESIDE = """## Side by side

Two adapters in one model, both active, saved, loaded into a fresh model, with the same outputs.
**yes**: in the same blocks, where both methods go by themselves. **blocks**: one inside the other's
places, which is refused, so that they take different blocks (`layers=`).

"""
OVER = """## One over the other

The method of the row made of the method of the column (`over=`): trained one step, saved, loaded,
with the same outputs.

"""
SUMS = """## Sums, means, differences

`intarsia.combine(model, {"a": 0.5, "b": 0.5}, "mean")` makes a third adapter whose change of the
weights is the mean of both. It works between all methods tagged *linear*: """


def vit() -> nn.Module:
    """Two blocks of width 32, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=SIDE,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=CLASSES,
        )


def _pictures() -> torch.Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def _moved(model: nn.Module) -> None:
    """Every trained weight moved, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@torch.no_grad()
def _says(model: nn.Module) -> torch.Tensor:
    with task_ids(model, torch.zeros(3, dtype=torch.int64)):
        return model.eval()(_pictures())


def _survives(model: PeftModel, names: list[str]) -> bool:
    """Whether a fresh model with the saved adapters says the same."""
    want = _says(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again: Any = vit()
        for name in names:
            place = Path(folder) / name
            again = load(again, place if place.is_dir() else folder, name=name)
        again.base_model.set_adapter(names)
        return torch.allclose(_says(again), want, rtol=1e-4, atol=1e-5)


def beside(one: Card, two: Card) -> str:
    """ "yes", "blocks" or "no": are both active in one model, saved and loaded?"""
    for places in ((None, None), ((0,), (1,))):
        try:
            model: Any = adapt(vit(), tiny(one), name="one", head=None, layers=places[0])
            model = adapt(model, tiny(two), name="two", head=None, layers=places[1])
        except IntarsiaError:
            continue
        model.base_model.set_adapter(["one", "two"])
        _moved(model)
        if _survives(model, ["one", "two"]):
            return "yes" if places == (None, None) else "blocks"
    return "no"


def over(outer: Card, inner: Card) -> bool:
    """Whether a method can be made of the other, trained a step, saved and loaded."""
    try:
        method = dataclasses.replace(tiny(outer), over=tiny(inner))
        model = adapt(vit(), method, name="one", head=None)
        with task_ids(model, torch.zeros(3, dtype=torch.int64)):
            model.train()(_pictures()).square().mean().backward()
    except (IntarsiaError, TypeError):
        return False
    _moved(model)
    return _survives(model, ["one"])


def sums(one: Card, two: Card) -> bool:
    """Whether the mean of two adapters is one whose change is the mean of theirs."""
    try:
        model: Any = adapt(vit(), tiny(one), name="one", head=None)
        model = adapt(model, tiny(two), name="two", head=None)
        model.base_model.set_adapter(["one", "two"])  # what is inactive is frozen
        _moved(model)
        model = combine(model, {"one": 0.5, "two": 0.5}, "mean")
    except IntarsiaError:
        return False
    mean, parts = (
        layers_of(model, "mean"),
        {name: layers_of(model, name) for name in ("one", "two")},
    )
    for path, layer in mean.items():
        deltas = [found[path].delta(name) for name, found in parts.items() if path in found]
        if not torch.allclose(layer.delta("mean"), 0.5 * torch.stack(deltas).sum(0), atol=1e-6):
            return False
    return mean.keys() == parts["one"].keys() | parts["two"].keys()


def _grid(
    rows: Iterable[Card], columns: Iterable[Card], cell: Callable[[Card, Card], str]
) -> list[str]:
    columns = list(columns)
    lines = [f"| | {' | '.join(c.key for c in columns)} |", f"|---{'|---' * len(columns)}|"]
    for row in rows:
        lines.append(f"| **{row.key}** | {' | '.join(cell(row, c) for c in columns)} |")
    return lines


def page() -> str:
    """All pairs, tried now."""
    found = cards("adapter")
    known = {
        frozenset((a.key, b.key)): beside(a, b)
        for a, b in itertools.combinations_with_replacement(found, 2)
    }
    lines = [INTRO + BESIDE.rstrip(), ""]
    lines += _grid(found, found, lambda a, b: known[frozenset((a.key, b.key))])
    outer = [c for c in found if any(f.name == "over" for f in dataclasses.fields(tiny(c)))]
    lines += ["", OVER.rstrip(), ""]
    lines += _grid(outer, found, lambda a, b: "yes" if over(a, b) else "")
    linear = [c for c in found if "linear" in c.tags]
    works = {c.key for c, d in itertools.product(linear, linear) if sums(c, d)}
    lines += ["", SUMS + ", ".join(f"`{key}`" for key in sorted(works)) + "."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/composition.md").write_text(page())
