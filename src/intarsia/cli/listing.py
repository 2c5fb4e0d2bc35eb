"""`intarsia list` and `intarsia show`: what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..catalog import TAGS, card, cards, commands, describe, example, find, shown
from ..core.errors import UnknownName
from ..core.registry import index, settings_to_dict
from ..core.schema import setting
from .completing import cards as CARD
from .declared import with_options
from .options import Json
from .shell import room, say, show_json, show_table

NARROW, WIDE = 80, 100  # characters of a line: of a pipe, and from which there is room for tags


def _words_of(field: str) -> list[str]:
    return sorted({entry[field] for entry in index().values()})


@dataclass(frozen=True)
class ListingOptions:
    """Kind, tag and family of the methods that are listed."""

    kind: str | None = setting(
        None,
        "Kind of method, such as adapter, router or baseline.",
        offers=lambda: _words_of("kind"),
    )
    tag: str | None = setting(
        None, "Tag of the methods, such as folds, linear or stochastic.", offers=tuple(TAGS)
    )
    family: str | None = setting(
        None,
        "Family of methods, such as 'adapter mixtures'.",
        offers=lambda: _words_of("family"),
    )


@with_options()
def list_methods(
    listing: ListingOptions,
    text: Annotated[
        str, typer.Argument(help="Text in a name, a title, a summary or an arXiv number.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the methods and the baselines, with the paper of each.

    Example:  intarsia list --kind adapter --tag folds
    Example:  intarsia list RMoE
    """
    kind, tag, family = listing.kind, listing.tag, listing.family
    described = [describe(card) for card in cards(kind, tag, family, text)]
    # Commands have no kind, tag or family: they are listed only where none is asked for.
    if kind is tag is family is None:
        described += commands(text)
    if text and not described and kind is tag is family is None:
        words = [word for entry in index().values() for word in entry["names"]]
        raise UnknownName("text of a method or a paper", text, [*words, *index()], "intarsia list")
    if as_json:
        # `intarsia show` has these; in a list they would bury the rest.
        hidden = ("settings", "doc")
        show_json([{k: v for k, v in card.items() if k not in hidden} for card in described])
        return
    _show_list(described)


def _show_list(described: Sequence[Mapping[str, Any]]) -> None:
    if room(NARROW) < WIDE:
        columns = ("name", "kind", "arXiv", "what it is")
        rows = [(c["name"], c["kind"], c["paper"]["arxiv"], c["summary"]) for c in described]
    else:
        columns = ("name", "kind", "paper", "tags", "what it is")
        rows = [
            (
                c["name"],
                c["kind"],
                f"{c['paper']['year']} arXiv:{c['paper']['arxiv']}",
                " ".join(c["tags"]),
                c["summary"],
            )
            for c in described
        ]
    show_table("", columns, rows, pipe=NARROW)


def show(
    method: Annotated[
        str,
        typer.Argument(
            help="Method: a name from `intarsia list`, or a paper's.", autocompletion=CARD
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show one method: its paper, settings with defaults, tags, and how to run it.

    Example:  intarsia show mosa
    """
    described = describe(card(find(method)))
    # Their settings are declared in PEFT, not in the index.
    if "peft" in described["family"]:
        described["settings"] = _with_pefts(described)
    if as_json:
        show_json(described)
        return
    paper = described["paper"]
    say(
        f"{described['name']} ({described['kind']}, {described['family']}): "
        f"{described['summary']}\n"
    )
    say(f"{paper['title']} ({paper['year']})\n{paper['url']}\n")
    if "python" in described:
        say(f"In Python: {described['python']}\n")
    if described["names"]:
        say(f"Also called: {', '.join(described['names'])}\n")
    if "doc" in described:
        say(f"{described['doc']}\n")
    # defaults as they are typed on the command line
    rows = [
        (s["name"], s["type"], shown(s["default"]), s.get("help", ""))
        for s in described["settings"]
    ]
    show_table("Settings", ("setting", "type", "default", "meaning"), rows)
    if described["tags"]:
        show_table("Tags", ("tag", "meaning"), [(t, TAGS.get(t, "")) for t in described["tags"]])
    if described["kind"] in ("adapter", "baseline"):
        say("\n  ".join(["Run it:", *example(described)]))


def _with_pefts(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of a method of PEFT, and of PEFT's own configuration."""
    settings = settings_to_dict(card(described["name"]).config())
    return [{"name": n, "type": type(v).__name__, "default": v} for n, v in settings.items()]
