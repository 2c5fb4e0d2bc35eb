"""`intarsia list` and `intarsia show`: what there is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Json
from .shell import show_json, show_table


def list_methods(
    kind: Annotated[str | None, typer.Option(help="Such as adapter, router or baseline.")] = None,
    tag: Annotated[str | None, typer.Option(help="Such as folds, linear or stochastic.")] = None,
    family: Annotated[str | None, typer.Option(help="Such as 'adapter mixtures'.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods and the baselines, with the paper of each.

    Example:  intarsia list --kind adapter --tag folds
    """
    from ..catalog import listed

    found = listed(kind, tag, family)
    if as_json:
        hidden = ("settings", "doc")
        show_json([{k: v for k, v in card.items() if k not in hidden} for card in found])
        return
    rows = [
        (c["name"], c["kind"], f"{c['paper']['year']} arXiv:{c['paper']['arxiv']}",
         " ".join(c["tags"]), c["summary"])
        for c in found
    ]  # fmt: skip
    show_table("", ("name", "kind", "paper", "tags", "what it is"), rows)


def show(
    method: Annotated[str, typer.Argument(help="A name from `intarsia list`.")],
    as_json: Json = False,
) -> None:
    """Show one method: its paper, settings with defaults, tags, and how to run it.

    Example:  intarsia show mosa
    """
    from ..catalog import TAGS, example, shown

    found = _described(method)
    if as_json:
        show_json(found)
        return
    paper = found["paper"]
    print(f"{found['name']} ({found['kind']}, {found['family']}): {found['summary']}\n")
    print(f"{paper['title']} ({paper['year']})\n{paper['url']}\n")
    if "python" in found:
        print(f"In Python: {found['python']}\n")
    if found["doc"]:
        print(f"{found['doc']}\n")
    rows = [(s["name"], s["type"], shown(s["default"])) for s in found["settings"]]
    show_table("Settings", ("setting", "type", "default"), rows)
    if found["tags"]:
        show_table("Tags", ("tag", "meaning"), [(t, TAGS.get(t, "")) for t in found["tags"]])
    if found["kind"] in ("adapter", "baseline"):
        print("Run it:", *example(found), sep="\n  ")


def _described(method: str) -> dict[str, Any]:
    from ..catalog import METHODS, card, describe, describe_baseline, key_of
    from ..core.baselines import BASELINES
    from ..core.errors import UnknownName

    known = [key_of(module) for module in METHODS]
    if method in known:
        return describe(card(method))
    if method not in BASELINES:
        raise UnknownName("method", method, (*known, *BASELINES))
    from ..hosts.baselines import settings_of  # imports PEFT, which a list can do without

    return describe_baseline(BASELINES[method], settings_of(method))
