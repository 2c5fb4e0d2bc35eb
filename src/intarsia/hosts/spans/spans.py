"""How far each head looks back: a line over the length of the text, for every key-value head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...core.checks import above, at_least, between
from ...core.errors import CheckpointError, ConfigError
from ...core.files import read_json, write_json
from ...core.sealing import check_settings, sealed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "intarsia-spans-1"
SINK = 64  # first tokens that every head sees (paper, section 4)
KEYS = frozenset({"format", "alpha", "beta", "sink", "block", "longest", "about"})
Lines = Sequence[Sequence[float]]  # (layers, heads)


@dataclass(frozen=True)
class Spans:
    """Number of tokens that each head sees, span_h(N) = alpha_h + beta_h N for a text of N tokens.

    A span counts the first `sink` tokens, which every head sees, and the last span - sink tokens up
    to the query's own. Spans are multiples of `block`, at least one block besides the sink, at most
    N.
    alpha, beta: (layers, heads), heads of keys and values, or of queries in old files.
    block: in tokens.  longest: text that they were chosen for, None = any.  about: the method that
    chose them, for the reader.
    Raises: ConfigError for lists that are not rectangular, or numbers that cannot be.
    Source: arXiv:2406.14909, section 3.
    """

    alpha: Lines
    beta: Lines
    sink: int = SINK
    block: int = 1
    longest: int | None = None
    about: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())

    def __post_init__(self) -> None:
        """Check the settings, and turn alpha and beta into tuples.  Raises: ConfigError."""
        at_least("sink", self.sink, 0)
        at_least("block", self.block, 1)
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, _lines(name, getattr(self, name)))
        if [len(row) for row in self.alpha] != [len(row) for row in self.beta]:
            got = f"{len(self.alpha)} and {len(self.beta)} layers, or other heads in one"
            fix = "Give one alpha and one beta for each head of each layer."
            raise ConfigError("alpha and beta", got=got, want="as many of both", fix=fix)
        for row in self.beta:
            for slope in row:
                between("beta", slope, 0, 1, "A span grows at most as the text does.")
        if self.longest is not None:
            at_least("longest", self.longest, self.sink + self.block)

    @classmethod
    def of(cls, spans: Tensor, **named: Any) -> Spans:
        """Build spans that are the same at every length of text.

        spans: (layers, heads) in tokens; named: other fields, as sink and block.
        """
        alpha = tuple(tuple(map(float, row)) for row in spans.tolist())
        return cls(alpha, tuple(tuple(0.0 for _ in row) for row in alpha), **named)

    @classmethod
    def uniform(cls, layers: int, heads: int, density: float, **named: Any) -> Spans:
        """Give every head the same share of the text: the first tokens and one window.

        This is StreamingLLM.

        layers, heads: their numbers; density: share of the text that each head sees; named: other
        fields, as sink and block.
        Source: arXiv:2309.17453.
        """
        above("density", density, 0)
        between("density", density, 0, 1)
        rows = tuple((0.0,) * heads for _ in range(layers))
        return cls(rows, tuple((density,) * heads for _ in range(layers)), **named)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.alpha)

    @property
    def heads(self) -> int:
        """Number of heads in each layer."""
        return len(self.alpha[0])

    def at(self, length: int) -> Tensor:
        """Return span_h(N) of every head for texts of `length` tokens, (layers, heads) int64.

        Raises: ConfigError for a length with no room for sink and block, or beyond `longest`.
        """
        at_least("length of the text", length, self.sink + self.block, "Use a smaller sink.")
        if self.longest is not None and length > self.longest:
            fix = "Choose spans for it: intarsia.spans.MoA(extend=...), or give a shorter length."
            want = f"at most {self.longest}, which the spans were chosen for"
            raise ConfigError("length of the text", got=length, want=want, fix=fix)
        import torch  # a file of spans is refused without it

        alpha, beta = (
            torch.tensor(numbers, dtype=torch.float64) for numbers in (self.alpha, self.beta)
        )
        # whole blocks, as the paper's kernels need them; 1e-9 against rounding of alpha + beta N
        blocks = torch.floor((alpha + beta * length) / self.block + 1e-9)
        least = -(-(self.sink + 1) // self.block)  # in blocks: the sink, and one more token
        spans = blocks.clamp_min(least) * self.block
        return spans.clamp_max(length).long()

    def density(self, length: int) -> float:
        """Return the share of keys and values that heads see at the end of a text.

        length: tokens of the text.

        It is the mean over heads of span / N, and also the share of the attention mask's last row.
        """
        return float(self.at(length).double().mean()) / length

    def for_heads(self, heads: int, length: int) -> Spans:
        """Reduce spans of query heads to `heads` key-value heads, which must serve them all.

        Among the query heads of a key-value head, consecutive ones as in transformers, the one with
        the largest span in a text of `length` tokens is taken.
        Raises: ConfigError if `heads` does not divide the number of heads here.
        """
        if heads == self.heads:
            return self
        if self.heads % heads:
            fix = "Take the file of this model."
            raise ConfigError("spans", got=f"{self.heads} heads", want=f"{heads} of them", fix=fix)
        # spans grow at different rates, so that the largest one depends on the length
        groups = self.at(length).view(self.layers, heads, -1)
        # the line of the head with the largest span at N, not the largest numbers of both lines
        share = self.heads // heads
        widest = [
            [i * share + best for i, best in enumerate(row)] for row in groups.argmax(-1).tolist()
        ]
        reduced = [
            tuple(tuple(row[i] for i in indices) for row, indices in zip(rows, widest, strict=True))
            for rows in (self.alpha, self.beta)
        ]
        return replace(self, alpha=reduced[0], beta=reduced[1])

    def to_dict(self) -> dict[str, Any]:
        """Return all fields ready for JSON, with the name of the format."""
        return {
            "format": FORMAT,
            "alpha": [list(row) for row in self.alpha],
            "beta": [list(row) for row in self.beta],
            "sink": self.sink,
            "block": self.block,
            "longest": self.longest,
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, content: Any) -> Spans:
        """Build spans from what `to_dict` returned, or from a file of the paper's repository.

        Raises: ConfigError, TypeError, KeyError for anything else.
        """
        # the paper's files have no sink, no block and no longest text
        if isinstance(content, Mapping) and set(content) == {"alphas", "betas"}:
            return cls(content["alphas"], content["betas"], about={"read": "alphas and betas"})
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            want, fix = f"{FORMAT!r}, or alphas and betas", "Write it with intarsia spans --out."
            got = content.get("format") if isinstance(content, Mapping) else type(content).__name__
            raise ConfigError("format of spans", got=got, want=want, fix=fix)
        if set(content) != KEYS:
            fix = "Restore the file."
            raise ConfigError("spans", got=sorted(content), want=sorted(KEYS), fix=fix)
        named = {name: content[name] for name in KEYS - {"format"}}
        return cls(**cast(Any, named))

    def save(self, path: str | Path) -> Path:
        """Write a JSON file; whole or not at all."""
        return write_json(path, sealed(self.to_dict()), indent=1)


def load_spans(path: str | Path) -> Spans:
    """Load spans from JSON: as `Spans.save` wrote it, or {"alphas", "betas"} of the paper's code.

    Raises: CheckpointError for a file that is neither, or changed after it was written.
    """
    try:
        content = read_json(Path(path))
        if isinstance(content, dict) and content.get("format") == FORMAT:
            # files of the paper's code have no digest
            content, _ = check_settings(Path(path), content)
        return Spans.from_dict(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        want = "a JSON file of spans"
        fix = "Write it with: intarsia spans MODEL --out spans.json"
        raise CheckpointError(f"spans {str(path)!r}", got=error, want=want, fix=fix) from error


def _lines(name: str, rows: Any) -> Lines:
    """Check that `rows` are lists of finite numbers of one length, and return them as tuples."""
    fix = "Give a list for each layer, with a number for each head."
    listed = isinstance(rows, Sequence) and not isinstance(rows, str) and len(rows) > 0
    if not listed or not all(isinstance(r, Sequence) and not isinstance(r, str) for r in rows):
        raise ConfigError(name, got=type(rows).__name__, want="lists of numbers", fix=fix)
    widths = {len(row) for row in rows}
    numbers = all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e9
        for row in rows
        for x in row
    )
    if len(widths) != 1 or not min(widths) or not numbers:
        got = f"rows of {sorted(widths)}" if numbers else "what is no number"
        raise ConfigError(name, got=got, want="as many numbers in each", fix=fix)
    return tuple(tuple(float(x) for x in row) for row in rows)
