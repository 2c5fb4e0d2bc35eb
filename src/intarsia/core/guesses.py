"""Refuse a call that a public function or class does not take, and name the one that was meant.

`exports` passes each public object through `checked` when it is first used, so that no function and
no class has a list of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import CallError, UnknownKeyword

SAME: Mapping[str, tuple[str, ...]] = {
    "r": ("rank",),
    "lora_r": ("rank",),
    "lora_rank": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "target_modules": ("targets",),
    "n": ("k", "count"),
    "N": ("k", "count"),
    "limit": ("k", "count"),
    "max_iter": ("n_iter",),
    "num_steps": ("steps", "n_iter"),
    "n_steps": ("steps", "n_iter"),
    "iterations": ("steps", "n_iter", "epochs"),
    "regularization": ("reg",),
    "lambda_": ("reg",),
    "l2": ("reg",),
    "factors": ("width",),
    "n_factors": ("width",),
    "embedding_size": ("width",),
    "d_model": ("width",),
    "n_neighbors": ("neighbours",),
    "max_new_tokens": ("tokens",),
    "max_tokens": ("tokens",),
    "max_length": ("tokens", "length"),
    "num_tokens": ("tokens",),
    "input_ids": ("ids",),
    "prompt": ("ids",),
    "attention_mask": ("mask",),
    "devices": ("topology",),
    "num_devices": ("topology", "devices"),
    "n_devices": ("topology", "devices"),
    "gpus": ("topology", "devices"),
    "strategy": ("by", "method"),
    "algorithm": ("by", "method"),
    "method": ("by", "fmt"),
    "adapter": ("method",),
    "config": ("method",),
    "peft_config": ("method",),
    "documents": ("docs",),
    "corpus": ("docs",),
    "texts": ("docs",),
    "path": ("folder",),
    "directory": ("folder",),
    "quality": ("bits_per_pixel",),
    "K": ("k", "neighbours"),
    "ram": ("slots",),
    "memory": ("slots",),
    "num_experts": ("experts",),
    "n_experts": ("experts",),
    "k": ("active", "count", "neighbours"),
    "top_k": ("active", "k", "count"),
    "topk": ("active", "k", "count"),
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
    "associativememory": "Mac",
    "bm25": "SparseIndex",
    "decode": "generate",
    "dictionarylearning": "GSC",
    "hopfield": "Mac",
    "int4": "BlockInt",
    "int8": "BlockInt",
    "llama": "language_model",
    "llm": "language_model",
    "load_model": "language_model",
    "automodelforcausallm": "language_model",
    "moe": "Mixture",
    "moelayer": "Mixture",
    "mixtureofexperts": "Mixture",
    "nmf": "GSC",
    "offloading": "offload",
    "placement": "place",
    "pruning": "sparsify",
    "l1_unstructured": "sparsify",
    "global_unstructured": "sparsify",
    "quantization": "compress",
    "quantizer": "compress",
    "recommend": "fit_recommender",
    "recommender": "fit_recommender",
    "retriever": "fit_retriever",
    "search": "SparseIndex",
    "sentencetransformer": "InferenceFree",
    "sparseencoder": "InferenceFree",
    "sparsecoder": "GSC",
    "sparse": "sparsify",
    "splade": "InferenceFree",
    "train": "fit",
    "trainer": "fit",
    "trainingarguments": "Training",
    "vectorstore": "SparseIndex",
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
ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "add": ("append",),
    "add_documents": ("append",),
    "insert": ("append",),
    "upsert": ("update",),
    "remove": ("delete",),
    "query": ("search",),
    "score": ("score_samples", "familiarity"),
    "retrieve": ("search", "recall"),
    "store": ("partial_fit",),
    "predict": ("recommend", "transform", "recall"),
    "encode": ("transform",),
    "decode": ("inverse_transform",),
    "compress": ("encode",),
    "decompress": ("decode",),
    "reconstruct": ("inverse_transform",),
    "similar_items": ("recommend",),
    "from_pretrained": ("load",),
    "save_pretrained": ("save",),
    "write": ("save",),
}
"""What others call a method, and what it may be called here."""
CHECKED = "__checked__"
"""The attribute of a wrapped function that holds the function itself."""
REMOVED = ("sparsity", "amount", "prune_ratio", "pruning_ratio")
"""Shares of weights that are removed, where this library counts those that are kept."""
HOLDERS: Mapping[str, tuple[str, str]] = {
    "active": ("intarsia.TopK", "router"),
    "density": ("intarsia.Wanda", "method"),
    "values": ("intarsia.formats.Bitmask", "fmt"),
    "bits": ("intarsia.formats.BlockInt", "fmt"),
}
"""The method, format or router that has a setting which a verb has not."""


def translated(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """Return "density=0.5" for sparsity=0.5, and so on; "" where no translation is known."""
    same = (name, *SAME.get(name, ()))
    # a setting of this call comes before one that a method, a format or a router has
    meant = next((n for place in (known, HOLDERS) for n in same if n in place), "")
    if name in REMOVED and isinstance(value, float) and 0 <= value < 1:
        meant, value = "density", round(1 - value, 6)
    if not meant:
        return ""
    shown = f"={value!r}" if isinstance(value, bool | int | float | str) else ""
    if meant in known:
        return f"{meant}{shown}"
    holder, keyword = HOLDERS.get(meant, ("", ""))
    return f"{holder}({meant}{shown}) as {keyword}" if keyword in known else ""


def checked(thing: Any, name: str, *, functions: bool, methods: bool) -> Any:
    """Return a public object that answers a wrong call in words; a class is changed in place.

    name: as a user writes it, such as "intarsia.sparsify"; functions: wrap functions, too, which
    are then other objects than their modules'; methods: check a class's methods, not its
    constructors alone. Functions of other libraries, those that take any keyword, and everything
    that cannot be called stay as they are.
    """
    if not getattr(thing, "__module__", "").startswith("intarsia"):
        return thing
    if inspect.isclass(thing):
        _check_class(thing, name, methods)
        return thing
    # it may come from another namespace, which has checked it under another name
    raw = vars(thing).get(CHECKED, thing) if inspect.isfunction(thing) else thing
    if not functions or not inspect.isfunction(raw) or _keywords(raw) is None:
        return thing
    call = _function_once(raw, name)
    # where it is public, so that other processes find the same object
    call.__module__, _, call.__qualname__ = name.rpartition(".")
    return call


@functools.cache
def _check_class(thing: type, name: str, methods: bool) -> None:
    """Let a class's constructors, and its methods, answer a wrong call in words."""
    home = next(kind for kind in thing.__mro__ if "__init__" in vars(kind))
    start = home.__init__
    if home.__module__.startswith("intarsia") and _keywords(start) is not None:
        home.__init__ = _refusing(start)
    ours = [kind for kind in thing.__mro__ if kind.__module__.startswith("intarsia")]
    for kind in ours if methods else [thing]:
        for word, member in list(vars(kind).items()):
            # forward is torch's to call, in every step
            if word.startswith("_") or word == "forward":
                continue
            if isinstance(member, classmethod) and _keywords(member.__func__) is not None:  # pyright: ignore
                setattr(kind, word, classmethod(_refusing(member.__func__, f"{name}.{word}")))  # pyright: ignore
            elif methods and isinstance(member, FunctionType) and _keywords(member) is not None:
                setattr(kind, word, _refusing(member, f"{kind.__name__}.{word}"))
    if methods and not hasattr(thing, "__getattr__") and not getattr(thing, "_is_protocol", False):
        thing.__getattr__ = _missing  # pyright: ignore


def _missing(thing: Any, name: str) -> Any:
    """Refuse an attribute that an object does not have: its `__getattr__`."""
    # a property that has raised an AttributeError of its own raises it again
    kind: Any = thing.__class__
    static = inspect.getattr_static(kind, name, None)
    if hasattr(static, "__get__"):
        return static.__get__(thing, kind)  # pyright: ignore
    raise NoSuchAttribute(kind, name)


class NoSuchAttribute(AttributeError):
    """An attribute that an object does not have; what was meant is looked up when it is shown."""

    def __init__(self, kind: Any, name: str) -> None:
        # without its object: Python would suggest a second time at the end of the same line
        super().__init__(kind, name, name=name)

    def __str__(self) -> str:
        kind: Any = self.args[0]
        name: str = self.args[1]
        names: list[str] = [n for n in dir(kind) if not n.startswith("_")]
        translations = [n for n in ATTRIBUTES.get(name, ()) if n in names]
        near = translations or difflib.get_close_matches(name, names)
        fix = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names)}."
        return f"{kind.__name__!r} object has no attribute {name!r}. {fix}"


@functools.cache
def _function_once(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the one object that stands for a public function under a name."""
    return _refusing(function, name)


def _keywords(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the keywords of a function; None if it takes any, or is refusing already."""
    if CHECKED in getattr(function, "__dict__", ()):
        return None
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}


def _refusing(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Wrap a function so that a call that cannot be is an error with the call that was meant."""

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        """Call the function.  Raises: UnknownKeyword, CallError, and what the function raises."""
        try:
            return function(*args, **keywords)
        except (AttributeError, TypeError) as error:
            refusal = None
            if not type(error).__module__.startswith("intarsia"):
                refusal = _refusal(function, name or type(args[0]).__name__, args, keywords)
            if refusal is None:  # an error of the work itself
                raise
            cause = error if isinstance(error, AttributeError) else None
        raise refusal from cause

    setattr(call, CHECKED, function)
    return call


def _refusal(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> TypeError | None:
    """Return the error for arguments that a function does not take; None if it takes them."""
    signature = inspect.signature(function)
    parameters = _keywords(function) or {}
    for bound in ("self", "cls"):
        parameters.pop(bound, None)
    # first an unknown keyword, for which Python and `bind` have no suggestion
    if strange := next((word for word in keywords if word not in parameters), None):
        meant = translated(strange, keywords[strange], parameters)
        fix = f"Did you mean {meant}?" if meant else ""
        return UnknownKeyword(f"keyword of {name}", strange, parameters, fix=fix)
    try:
        arguments = signature.bind(*args, **keywords).arguments
    except TypeError as error:
        want = f"{name.rpartition('.')[2]}({', '.join(_shown(parameters.values()))})"
        is_missing = str(error).startswith("missing")
        fix = "Give it." if is_missing else "Give each once; what follows the * by its name."
        if is_missing and function.__name__ == "__init__":
            fix = " or ".join((fix.rstrip("."), *_further_constructors(args[0].__class__))) + "."
        return CallError(f"call of {name}", got=str(error), want=want, fix=fix)
    try:
        hints = get_type_hints(inspect.unwrap(function))
    except (AttributeError, NameError, TypeError):  # a name for type checkers alone
        return None
    # classes are asked here alone, after the call has failed: what behaves like one is taken
    for word, value in arguments.items():
        kinds = _kinds_of(hints.get(word))
        if kinds and not isinstance(value, kinds):
            want = " or ".join(kind.__name__ for kind in kinds)
            got = f"{value.__name__}, a class" if inspect.isclass(value) else type(value).__name__
            builds = dataclasses.is_dataclass(value) and hasattr(type(value), "build")
            fix = f"Give what its build(...) returns: {got}(...).build(...)." if builds else ""
            return CallError(
                f"{word} of {name}", got=got, want=want, fix=fix or f"See help({name})."
            )
    return None


def _kinds_of(kind: Any) -> tuple[type, ...]:
    """Return the classes of which an annotated parameter is; () where that is not clear."""
    union = get_origin(kind) in (Union, UnionType)
    members = [get_origin(m) or m for m in (get_args(kind) if union else (kind,))]
    # a number of NumPy is one, too, and a protocol is no class to ask
    clear = all(inspect.isclass(m) and not getattr(m, "_is_protocol", False) for m in members)
    if not clear or {int, float, bool, object, Any} & set(members):
        return ()
    return tuple(members)


def _further_constructors(kind: type) -> list[str]:
    """Return the calls of a class's further constructors, such as "SparseIndex.build(...)"."""
    static = {word: inspect.getattr_static(kind, word) for word in dir(kind) if word[0] != "_"}
    return [f"{kind.__name__}.{w}(...)" for w, m in static.items() if isinstance(m, classmethod)]


def _shown(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """Yield parameters as a call has them: "model", "*", "name=..."."""
    starred = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield p.name if p.default is p.empty else f"{p.name}=..."
