"""Refuse keywords that a public function or class does not have, and name the one that was meant.

`exports` passes each public object through `checked` when it is first used, so that no function and
no class has a list of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UnknownKeyword

SAME: Mapping[str, tuple[str, ...]] = {
    "r": ("rank",),
    "lora_r": ("rank",),
    "lora_rank": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "target_modules": ("targets",),
    "num_experts": ("experts",),
    "n_experts": ("experts",),
    "k": ("active", "count", "neighbours"),
    "top_k": ("active", "k"),
    "topk": ("active", "k"),
    "num_experts_per_tok": ("active",),
    "format": ("fmt", "form"),
    "learning_rate": ("lr",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "num_classes": ("classes",),
    "n_classes": ("classes",),
    "image_size": ("size",),
    "img_size": ("size",),
    "dim": ("width",),
    "hidden_size": ("width",),
    "embedding_dim": ("width",),
    "atoms": ("n_components",),
    "components": ("n_components",),
    "nbits": ("bits",),
    "n_bits": ("bits",),
    "num_bits": ("bits",),
    "seed": ("random_state",),
    "random_state": ("seed",),
    "data": ("calib", "batches", "train"),
    "dataset": ("calib", "data", "train"),
    "calibration": ("calib",),
}
"""What others call a setting, and what it may be called here."""
ELSEWHERE: Mapping[str, str] = {
    "bm25": "SparseIndex",
    "export": "export_timm",
    "fine_tune": "fit",
    "finetune": "fit",
    "get_peft_model": "adapt",
    "merge": "fold",
    "merge_and_unload": "fold",
    "prune": "sparsify",
    "quantise": "compress",
    "quantize": "compress",
}
"""What others call a function or a class, in small letters, and its public name here."""
COMMANDS: Mapping[str, str] = {"serve": "intarsia serve FOLDER"}
"""What is a command alone, by the name under which it is looked for in Python."""
REMOVED = ("sparsity", "amount", "prune_ratio", "pruning_ratio")
"""Shares of weights that are removed, where this library counts those that are kept."""
HOLDERS: Mapping[str, str] = {
    "density": "intarsia.Wanda",
    "values": "intarsia.formats.Bitmask",
    "bits": "intarsia.formats.BlockInt",
}
"""The method or format that has a setting which a verb has not."""


def translated(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """Return "density=0.5" for sparsity=0.5, and so on; "" where no translation is known.

    name, value: of the unknown keyword; known: the keywords that there are.
    """
    meant = next((n for n in SAME.get(name, ()) if n in known), "")
    if name in REMOVED and isinstance(value, float) and 0 <= value < 1:
        meant, value = "density", round(1 - value, 6)
    elif name in HOLDERS:
        meant = name
    if not meant:
        return ""
    shown = f"={value!r}" if isinstance(value, bool | int | float | str) else ""
    if meant in known:
        return f"{meant}{shown}"
    holder = "method" if "method" in known else "fmt" if "fmt" in known else ""
    return f"{HOLDERS[meant]}({meant}{shown}) as {holder}" if holder and meant in HOLDERS else ""


def checked(thing: Any, name: str, *, functions: bool) -> Any:
    """Return a public object that refuses unknown keywords; a class is changed in place.

    name: as a user writes it, such as "intarsia.sparsify"; functions: wrap functions, too, which
    are then other objects than their modules'. Functions of other libraries, those that take any
    keyword, and everything that cannot be called stay as they are.
    """
    if not getattr(thing, "__module__", "").startswith("intarsia"):
        return thing
    if inspect.isclass(thing):
        home = next(kind for kind in thing.__mro__ if "__init__" in vars(kind))
        start = home.__init__
        if home.__module__.startswith("intarsia") and _keywords(start) is not None:
            home.__init__ = _refusing(start)
        _check_constructors(thing, name)
        return thing
    if not functions or not inspect.isfunction(thing) or _keywords(thing) is None:
        return thing
    call = _function_once(thing, name)
    # where it is public, so that other processes find the same object
    call.__module__, _, call.__qualname__ = name.rpartition(".")
    return call


def _check_constructors(thing: type, name: str) -> None:
    """Let a class's further constructors, such as `build`, refuse unknown keywords, too."""
    for word, member in list(vars(thing).items()):
        is_public = isinstance(member, classmethod) and not word.startswith("_")
        if is_public and _keywords(member.__func__) is not None:  # pyright: ignore
            setattr(thing, word, classmethod(_refusing(member.__func__, f"{name}.{word}")))  # pyright: ignore


@functools.cache
def _function_once(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the one object that stands for a public function under a name."""
    return _refusing(function, name)


def _keywords(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the keywords of a function; None if it takes any, or is refusing already."""
    if hasattr(function, "__wrapped__"):
        return None
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}


def _refusing(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Wrap a function so that an unknown keyword is an error with the one that was meant."""
    known = _keywords(function) or {}
    for bound in ("self", "cls"):
        known.pop(bound, None)

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        """Call the function.  Raises: UnknownKeyword, and what the function raises."""
        if strange := next((word for word in keywords if word not in known), None):
            meant = translated(strange, keywords[strange], known)
            fix = f"Did you mean {meant}?" if meant else ""
            subject = f"keyword of {name or type(args[0]).__name__}"
            raise UnknownKeyword(subject, strange, known, fix=fix)
        return function(*args, **keywords)

    return call
