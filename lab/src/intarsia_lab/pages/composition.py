"""Which adapters go together, tried by trait on a small ViT; `python -m` writes the page."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from intarsia.catalog import cards
from intarsia.conformance.cards import tiny
from intarsia.conformance.cells import site
from intarsia.conformance.changes import (
    change_of,
    changed,
    comes_back_from_its_folder,
    host_of,
    outputs,
    pictures,
    vit,
)
from intarsia.conformance.made import moved
from intarsia.core import Card
from intarsia.core.errors import IntarsiaError
from intarsia.core.files import write_text
from intarsia.folders.saved import load, save
from intarsia.folders.verbs import adapt
from intarsia.gating import task_ids
from intarsia.hosts.delta.cells import layers_of
from intarsia.hosts.delta.combine import combine

from . import sparse_composition
from .trials import Trials

Pair = Callable[[Callable[[Card, Card], Any], Card, Card], Any]

INTRO = """# What goes together

Tried on a small ViT; `python -m intarsia_lab.pages.composition` tries it again and writes this
page. What two methods do beside each other depends on their traits: where their cells sit, whether
those run beside a module or after it, whether they are changes of weights, and whether they compute
the module they sit at (*whole*). One method of each trait is tried with every other trait, all
other methods with the one of their own trait. The rest follows.

| trait | methods, the tried one first |
|---|---|
"""
BESIDE = """## Side by side

Two adapters in one model, both active, saved, loaded into a fresh model, with the same outputs.
**yes**: in the same blocks, where both methods go by themselves. **blocks**: one inside the other's
places, which is refused, so that they take different blocks (`layers=`).
"""
WITHIN = """Each other method beside the one of its trait: """
STACKED = """## One after the other

A change of the model (the row), then an adapter (the column), trained, saved with `intarsia.save`
and loaded into a fresh model with the same outputs. **refused**: the first change leaves no place
for the second, which says so.
"""
OVER = """## One over the other

The method of the row made of the method of the column (`over=`): trained one step, saved, loaded,
with the same outputs. Every pair was tried, since a method chooses what it is made of.
"""
SUMS = """## Sums, means, differences

`intarsia.sparse.combine(model, {"a": 0.5, "b": 0.5}, "mean")` makes a third adapter whose change of
the weights is the mean of both. It works between all methods tagged *linear*, each tried with
the first of them: """


class Trait(NamedTuple):
    """The properties that decide next to which other adapters a method can stand."""

    place: str
    position: str
    linear: bool
    whole: bool

    def __str__(self) -> str:
        """Return the trait in words, such as "linear, at layers of attention"."""
        kind = "whole" if self.whole else "linear" if self.linear else "not linear"
        return f"{kind}, {self.position}, {self.place}"


def trait(card: Card) -> Trait:
    """Return the trait of an adapter: the properties that decide its possible partners.

    card: the adapter's registered description; its smallest settings are built to find out.
    """
    config = tiny(card)
    cell = config.build(site(card), generator=torch.Generator())
    # roles: kinds of modules that the adapter sits at
    roles = set(config.roles)
    place = "at layers of attention"
    if roles & {"mlp", "attention", "block"}:
        place = "at the MLP or a block"
    elif roles & {"mlp_linear", "linear"}:
        place = "at layers inside the MLP too"
    return Trait(place, config.position, "linear" in card.tags, cell.whole)


def by_trait(adapters: Iterable[Card]) -> dict[Trait, list[Card]]:
    """Group adapters by their traits; within a group the oldest paper comes first.

    A trait is the set of properties that decide what an adapter combines with (see Trait); the
    first adapter of a group is tried for all of them.
    """
    groups: dict[Trait, list[Card]] = {}
    # arXiv numbers begin with year and month, so that they sort by age
    for card in sorted(adapters, key=lambda c: (c.paper.arxiv, c.key)):
        groups.setdefault(trait(card), []).append(card)
    return groups


def _survives(model: PeftModel, names: list[str]) -> bool:
    """Return True if a fresh model with the saved adapters gives the same outputs."""
    want = outputs(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again: Any = vit()
        for name in names:
            # PEFT saves each adapter in a folder of its name, a single one in the folder itself
            place = Path(folder) / name
            again = load(again, place if place.is_dir() else folder, name=name)
        again.base_model.set_adapter(names)
        return torch.allclose(outputs(again), want, rtol=1e-4, atol=1e-5)


def beside(first_card: Card, second_card: Card) -> str:
    """Try two adapters in one model, both active: do they train, save and load?

    first_card, second_card: their registered descriptions. Returns "yes" if they can be in the same
    blocks, "blocks" if they must be in different ones, "no" otherwise.
    """
    # first in all blocks, then each in a block of its own
    for places in ((None, None), ((0,), (1,))):
        try:
            model: Any = adapt(vit(), tiny(first_card), name="one", head=None, layers=places[0])
            model = adapt(model, tiny(second_card), name="two", head=None, layers=places[1])
        # refused in the same blocks: the next try gives each a block of its own
        except IntarsiaError:
            continue
        model.base_model.set_adapter(["one", "two"])
        # an adapter that starts at zero would hide that it was not loaded
        moved(model)
        if _survives(model, ["one", "two"]):
            return "yes" if places == (None, None) else "blocks"
    return "no"


def over(outer: Card, inner: Card) -> bool:
    """Try a method that is made of another one, such as a mixture of LoRA experts.

    outer: the method with a setting `over`; inner: the adapter that it is made of. True if it is
    trained a step, saved and loaded with the same outputs.
    """
    try:
        method = dataclasses.replace(tiny(outer), over=tiny(inner))
        model = adapt(vit(), method, name="one", head=None)
        # methods that mix by task read a number for each picture
        with task_ids(model, torch.zeros(3, dtype=torch.int64)):
            model.train()(pictures()).square().mean().backward()
    except (IntarsiaError, TypeError):
        return False
    moved(model)
    return _survives(model, ["one"])


def after(first: Card, then: Card) -> str:
    """Try a change of a model, then an adapter on the changed model: do they save and load?

    first: the change of the model; then: the adapter. Returns "yes", "no", or "refused" where the
    first change leaves no place for the second.
    """
    try:
        model = changed(changed(vit(), change_of(first)), change_of(then))
    except IntarsiaError:
        return "refused"
    # trained, or a change that starts at nothing would look as if it had been saved
    want = outputs(moved(model))
    with tempfile.TemporaryDirectory() as folder:
        again = load(vit(), save(model, f"{folder}/saved"))
    return "yes" if torch.allclose(outputs(again), want, rtol=1e-4, atol=1e-5) else "no"


def sums(first_card: Card, second_card: Card) -> bool:
    """Test that the mean of two adapters changes the weights by the mean of their changes.

    first_card, second_card: registered descriptions of the adapters.
    """
    try:
        model: Any = adapt(vit(), tiny(first_card), name="one", head=None)
        model = adapt(model, tiny(second_card), name="two", head=None)
        model.base_model.set_adapter(["one", "two"])  # the inactive ones are frozen
        moved(model)
        model = combine(model, {"one": 0.5, "two": 0.5}, "mean")
    except IntarsiaError:
        return False
    mean, parts = (
        layers_of(model, "mean"),
        {name: layers_of(model, name) for name in ("one", "two")},
    )
    for path, layer in mean.items():
        # an adapter has no change at layers that it does not sit at
        deltas = [layers[path].delta(name) for name, layers in parts.items() if path in layers]
        if not torch.allclose(layer.delta("mean"), 0.5 * torch.stack(deltas).sum(0), atol=1e-6):
            return False
    return mean.keys() == parts["one"].keys() | parts["two"].keys()


def _grid(heads: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """Return the lines of a Markdown table.  heads: of the columns; rows: (name, values)."""
    heads = list(heads)
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    return lines + [f"| **{name}** | {' | '.join(cells)} |" for name, cells in rows]


def _of_a_plain_model() -> list[Card]:
    """Return the methods that change a plain model, or add prompts, and that can be saved."""
    candidates = (*cards("change"), *cards("baseline", family="prompts"))
    saved = [c for c in candidates if comes_back_from_its_folder.__name__ not in c.exceptions]
    # host_of: only those that are tried on the small ViT
    return [c for c in saved if host_of(c) is vit]


def _made_of(methods: Iterable[Card], pair: Pair) -> list[str]:
    """Return the Markdown table of methods that can be made of others."""
    methods = list(methods)
    outer = [c for c in methods if any(f.name == "over" for f in dataclasses.fields(tiny(c)))]
    rows = ((a.key, ["yes" if pair(over, a, b) else "" for b in methods]) for a in outer)
    return _grid((c.key for c in methods), rows)


def page(report: Callable[[str], None] = lambda _: None) -> str:
    """Return the text of docs/composition.md: which adapters can be combined, by trials.

    Trials: `beside` (two adapters on one model), `after` (one applied to a model that the other has
    changed), `over` (one made of the other), `sums` (their mean). Trials with unchanged code are
    read from a store; report: gets a line for each that runs.
    """
    adapters, trials = cards("adapter"), Trials(__file__, report)

    def pair(trial: Callable[[Card, Card], Any], first: Card, second: Card) -> Any:
        """Return the result of a trial of two methods, stored or by running it now."""
        return trials(trial.__name__, first, second, run=partial(trial, first, second))

    # one adapter stands for each trait, or all pairs would take hours
    groups = by_trait(adapters)
    firsts = [group[0] for group in groups.values()]
    lines = [INTRO.rstrip()]
    for group_trait, group in groups.items():
        lines.append(f"| {group_trait} | {', '.join(f'`{card.key}`' for card in group)} |")
    pairs = itertools.combinations_with_replacement(firsts, 2)
    answers = {frozenset((a.key, b.key)): pair(beside, a, b) for a, b in pairs}
    rows = ((a.key, [answers[frozenset((a.key, b.key))] for b in firsts]) for a in firsts)
    lines += ["", BESIDE, *_grid((c.key for c in firsts), rows)]
    # every other adapter is tried once, with the one of its trait
    within = [
        f"`{c.key}` {pair(beside, c, first)}" for first, *rest in groups.values() for c in rest
    ]
    lines += ["", f"{WITHIN}{', '.join(within)}."]
    stacks = ((c.key, [pair(after, c, a) for a in firsts]) for c in _of_a_plain_model())
    lines += ["", STACKED, *_grid((c.key for c in firsts), stacks)]
    lines += ["", OVER, *_made_of(adapters, pair), ""]
    for part in sparse_composition.parts(firsts, trials):
        lines += [part] if isinstance(part, str) else [*_grid(part[0], part[1].items()), ""]
    # a mean of factors is no mean of changes: only adapters that are linear in x have one
    first, *rest = [c for c in adapters if "linear" in c.tags]
    works = [c.key for c in (first, *rest) if pair(sums, first, c)]
    lines += [f"{SUMS}{', '.join(f'`{key}`' for key in works)}.", ""]
    return "\n".join(lines)


def write(docs: Path) -> None:
    """Write the page.  docs: the folder of the documentation."""
    write_text(docs / "composition.md", page(print))


if __name__ == "__main__":
    write(Path("docs"))
