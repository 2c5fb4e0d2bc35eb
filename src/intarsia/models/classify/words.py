"""The words of methods for labelled rows: tfidf, minilm@6:128, lora=minilm, tfidf*2+minilm."""

from __future__ import annotations

import re
from pathlib import Path

from ...core.errors import ConfigError, UnknownName
from ...core.registry import keys

SPARSE = {"words": ("word",), "tfidf": ("word", "characters")}
NUMBERS = "numbers"
MODELS = ("minilm", "smollm2")
ADAPTED = "minilm"  # where an adapter is named without a model
WORDS = (*SPARSE, *MODELS, NUMBERS)
TOKENS = 256  # of a text that a model reads, at most
FORM = re.compile(r"(?P<model>.+?)(@(?P<layer>\d+))?(:(?P<tokens>\d+))?")


def split_word(word: str) -> tuple[str, int | None, int]:
    """Return the model, the layer (None = any) and the number of tokens of MODEL@LAYER:TOKENS."""
    match = FORM.fullmatch(word)
    if match is None:
        want = f"{', '.join(SPARSE)}, or a model as {MODELS[0]}@6"
        raise ConfigError("method", got=repr(word), want=want, fix="For example: tfidf")
    model, layer, tokens = match["model"], match["layer"], match["tokens"]
    path = Path(model).expanduser()
    model = str(path.resolve()) if path.is_dir() and model not in MODELS else model
    return model, None if layer is None else int(layer), int(tokens or TOKENS)


def split_adapter(word: str) -> tuple[str | None, str]:
    """Return the key of the adapter and the model of ADAPTER=MODEL@LAYER:TOKENS.

    Without a model it is `ADAPTED`; the key is None for a word without an adapter.
    """
    if word in keys():
        return word, ADAPTED
    adapter, equals, model = word.partition("=")
    return (adapter, model) if equals and adapter in keys() else (None, word)


def has_adapter(method: str) -> bool:
    """Decide whether an adapter is among the words of a method."""
    return any(split_adapter(word)[0] is not None for word, _ in parse_method(method))


def with_model(method: str | None, model: str | None) -> str | None:
    """Return a method for a model that is named next to it: lora and minilm are lora=minilm.

    A model alone is a method, its frozen hidden states.
    Raises: ConfigError for a method that takes none.
    """
    if model is None or method is None:
        return model or method
    if method in keys():
        return f"{method}={model}"
    want, fix = "an adapter, or no method", "For example: --method lora --model minilm"
    raise ConfigError("--model", got=f"{model} with {method}", want=want, fix=fix)


def check_method(method: str) -> None:
    """Refuse a method with an unknown word, before anything is read or fitted.

    Raises: UnknownName for a word that is no feature and no model's folder or name; ConfigError.
    """
    for word, _ in parse_method(method):
        adapter, rest = split_adapter(word)
        model = rest.partition("@")[0].partition(":")[0]
        named = "@" in rest or "/" in rest or Path(model).expanduser().is_dir()
        known = WORDS if adapter is None else MODELS
        if model not in known and not named:
            raise UnknownName("method for labelled rows", word, (*WORDS, f"lora={ADAPTED}"))


def parse_method(method: str) -> list[tuple[str, float]]:
    """Return a method's words with shares: "tfidf*2+minilm" is 2/3, 1/3.  Raises: ConfigError."""
    pairs: list[tuple[str, float]] = []
    for part in method.split("+"):
        word, star, times = part.strip().partition("*")
        try:
            share = float(times) if star else 1.0
        except ValueError:
            share = 0.0
        if not word or not 0 < share < float("inf"):
            fix = "For example: tfidf, or tfidf*2+minilm@6"
            raise ConfigError("method", got=repr(method), want="words, joined by +", fix=fix)
        pairs.append((word, share))
    total = sum(share for _, share in pairs)
    return [(word, share / total) for word, share in pairs]
