"""What a method says of itself: read by the catalogue, the docs, the command line and the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError

KINDS = (
    "adapter",
    "router",
    "mixture",
    "model",
    "partition",
    "format",
    "score",
    "schedule",
    "objective",
    "training",
    "unlearning",
    "placement",
    "cache",
    "parallel",
    "change",
    "recipe",
    "baseline",
)


@dataclass(frozen=True)
class Paper:
    """A published source."""

    arxiv: str
    year: int
    title: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class Card:
    """The description of a method: key, kind, config, paper, and tags that conformance checks.

    `config` is a frozen dataclass with defaults that work; `tiny` are its settings for tests.
    `family` is the group in which a reader looks for it, such as "adapter mixtures"; `names` are
    the paper's name for it and other spellings, each of one card only.
    Tags of adapters: "linear" (delta() is not None), "stochastic" (training forwards differ),
    "folds" (can become plain weights of a stock model), "zero_start" (adds nothing before
    training).  Tags of routers: "stochastic", "sparse" (no token has every expert), "learned"
    (weights carry a gradient), "non_causal" (a token's experts depend on later tokens), "capacity"
    (an expert takes so many tokens, so that a token's place in the batch matters), "stateful"
    (the router reads what the layer before left in Routing.state).
    Tag of changes that prune: "compensates" (kept weights change, too).
    `exceptions` are laws of conformance that do not hold for it: law -> reason.

    Raises: ConfigError for a kind that is none of KINDS.
    """

    key: str
    kind: str
    config: Callable[..., Any]
    paper: Paper
    tags: frozenset[str] = frozenset()
    tiny: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    summary: str = ""
    family: str = ""
    names: tuple[str, ...] = ()
    exceptions: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())

    def __post_init__(self) -> None:
        """Refuse a kind that is none of KINDS: it would hide the method from every list."""
        # a misspelled kind would hide the method from every list
        if self.kind not in KINDS:
            subject, got = f"kind of {self.key!r}", self.kind
            raise ConfigError(subject, got=got, want=KINDS, fix="Use one of the kinds.")
