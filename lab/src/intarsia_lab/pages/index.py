"""The card index and the stubs of public names, written from the cards in the methods' files."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, cast

from intarsia.core import Card
from intarsia.core.exports import TOPICS, homes, namespaces
from intarsia.core.registry import INDEX, card, cards_in, index, settings_to_dict
from intarsia.core.schema import LIMITS, METADATA, Setting, help_of, words

ROOT = INDEX.parents[1]


def modules_with_cards(root: Path = ROOT) -> list[str]:
    """Return the names of modules below `root` that declare a CARD or CARDS, sorted.

    A card is the registered description of a method.
    """
    files = (p for p in root.rglob("*.py") if re.search("^CARDS? = ", p.read_text(), re.MULTILINE))
    paths = (p.parent if p.stem == "__init__" else p.with_suffix("") for p in files)
    return sorted(".".join(p.relative_to(root).parts) for p in paths)


def entries(*, settings: bool = True) -> dict[str, dict[str, Any]]:
    """Return the index of all methods, by key, from their modules, which are imported.

    settings: False leaves the settings out; only then may the index on disk be missing or old.
    """
    # a method's file may hold several cards
    by_key = {
        method_card.key: entry(method_card, module, settings)
        for module in modules_with_cards()
        for method_card in cards_in(importlib.import_module(f"intarsia.{module}"))
    }
    return dict(sorted(by_key.items()))


def entry(method_card: Card, module: str, settings: bool) -> dict[str, Any]:
    """Return a method's description as JSON can hold it, with each setting's type and default.

    method_card: the registered description; module: where it is declared; settings: include them.
    """
    config = cast(Any, method_card.config)
    # a method without a class of settings is a function: it has no path to import
    named = inspect.isclass(config)
    return {
        "kind": method_card.kind,
        "module": module,
        "config": f"{config.__module__}.{config.__name__}".removeprefix("intarsia.")
        if named
        else "",
        "paper": dataclasses.asdict(method_card.paper),
        "family": method_card.family,
        "summary": method_card.summary,
        "names": list(method_card.names),
        "tags": sorted(method_card.tags),
        "exceptions": dict(method_card.exceptions),
        "phased": hasattr(config, "phases"),
        **({"data_of": config.data_of} if method_card.family == "recommenders" else {}),
        "settings": _settings(config()) if settings else [],
    }


def _settings(config: Any) -> list[dict[str, Any]]:
    """Return name, type, default, help and limits of each setting."""
    defaults = settings_to_dict(config)
    return [
        {
            "name": f.name,
            "type": _type_name(f.type),
            "default": defaults[f.name],
            "help": help_of(f),
            **_limits(f.metadata.get(METADATA)),
        }
        for f in dataclasses.fields(config)
        if f.name in defaults
    ]


def _limits(declared: Setting | None) -> dict[str, Any]:
    """Return the choices and the range of a setting that has some, as `Setting` names them."""
    limits = {name: getattr(declared, name, None) for name in LIMITS}
    limits["choices"] = list(words(declared.choices)) if declared is not None else []
    return {name: value for name, value in limits.items() if value not in (None, [])}


def _type_name(annotation: object) -> str:
    # modules postpone annotations, so that they are text already
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def index_text(entries_by_key: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the index as JSON text, one field a line, so that changes can be read and merged.

    entries_by_key: description of each method, see `entry`.
    """
    cards = (
        f" {json.dumps(key)}: {{\n"
        + ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
            for name, value in fields.items()
        )
        + "\n }"
        for key, fields in entries_by_key.items()
    )
    return "{\n" + ",\n".join(cards) + "\n}\n"


def stubs() -> list[Path]:
    """Return the stubs, which list public names: of the top level, the topics and the folders."""
    return sorted((*ROOT.glob("*.pyi"), *ROOT.glob("*/__init__.pyi")))


def stub_text(
    entries_by_key: Mapping[str, Mapping[str, Any]], stub: Path, package: str = ""
) -> str:
    """Return the text of a stub file: imports of a package's public names.

    entries_by_key: the index of methods; their settings below a folder are all public; stub: its
    path, its names so far stay; package: "routers." for that folder, "" for the top level. Its
    names, and the topics', are chosen by hand.
    """
    by_hand = package.rstrip(".") in {"", *TOPICS}
    places = (
        e["config"].rpartition(".") for e in entries_by_key.values() if e["config"] and not by_hand
    )
    below = {name: m.removeprefix(package) for m, _, name in places if m.startswith(package)}
    names = homes(stub) | below
    # by module, then classes before functions, so that a merge finds one order
    rows = sorted((m, n.islower(), n) for n, m in names.items() if _exists(package, m or n))
    return "".join(f"from .{m} import {n} as {n}\n" for m, _, n in rows)


def package_of(stub: Path) -> str:
    """Return the package of a stub with a dot behind it, "" for the top level."""
    return "".join(f"{part}." for part in stub.parent.relative_to(ROOT).parts)


def _exists(package: str, module: str) -> bool:
    name = resolve_name(f".{module}", f"intarsia.{package}".rstrip("."))
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def write() -> None:
    """Write the card index and the stubs of public names."""
    for settings in (False, True):  # a setting may be a method, and the index must know its key
        by_key = entries(settings=settings)
        INDEX.write_text(index_text(by_key))
        index.cache_clear()
        card.cache_clear()
    for stub in stubs():
        stub.write_text(stub_text(by_key, stub, package_of(stub)))
    namespaces.cache_clear()


if __name__ == "__main__":
    write()
