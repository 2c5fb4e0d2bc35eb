"""What a method does to a layer, as a small drawing made of its card: inline SVG for its page.

Colours are the page's (`docs/site.css`): frozen parts are outlined, new ones are filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Lines = list[str]
REFUSED = re.compile(
    r"(?:^|(?<=[.:;]\s)|(?<=[.]  ))Not (?:for|when|with|where|in|without|as|to)\s", re.M
)
ENDED = re.compile(r"^\s*$|(?:^|(?<=[.:] ))(?:Raises|Source): ", re.M)
WIDTH = 560
BLOCKS = 6  # drawn of a model
CHOSEN = ("mixlora", "llava_mole")  # their cell is a mixture that routes by its input
ONE = ("hash", "random", "switch")  # routers that choose one expert for a token


def figure(card: Mapping[str, Any]) -> str:
    """Return a small drawing of a method as SVG, "" where none shows what sets it apart.

    card: its description from the index: the name decides whether, the tags how it is drawn.
    """
    draw = _DRAWINGS.get(card["name"])
    if draw is None:
        return ""
    lines, height, says = draw(card["name"], set(card["tags"]))
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{says}">'
    return "\n".join(['<figure class="drawing">', head, *lines, "</svg>", "</figure>"])


def _box(x: float, y: float, w: float, h: float, text: str = "", kind: str = "box") -> Lines:
    """Return the SVG of a box with text in its middle."""
    lines = [f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6"/>']
    return lines + (_text(x + w / 2, y + h / 2 + 5, text) if text else [])


def _text(x: float, y: float, text: str, kind: str = "") -> Lines:
    """Return the SVG of a text with its middle at x.  kind: CSS class."""
    return [f'<text x="{x:g}" y="{y:g}"{f" class={kind!r}" if kind else ""}>{text}</text>']


def _line(*points: tuple[float, float], kind: str = "line") -> str:
    """Return the SVG of a line through points."""
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{kind}" d="M{path}"/>'


def _arrow(*points: tuple[float, float]) -> Lines:
    """Return the SVG of a line through points that ends in a tip pointing to the right."""
    x, y = points[-1]
    tip = f'<path class="arrow" d="M{x:g} {y:g}l-7 -4.5v9z"/>'
    return [_line(*points[:-1], (x - 6, y)), tip]


def _adapter(name: str, tags: set[str]) -> tuple[Lines, int, str]:
    """Draw an adapter next to a frozen layer: input, both paths, and their sum."""
    # the upper path: the frozen layer
    lines = [*_text(28, 53, "x"), *_arrow((40, 48), (150, 48)), *_box(150, 24, 150, 48)]
    lines += [*_text(225, 53, "layer, frozen"), *_arrow((300, 48), (428, 48))]
    # the lower path: the adapter, which reads the same input
    lines += [_line((90, 48), (90, 128)), *_arrow((90, 128), (150, 128))]
    if "stochastic" in tags and "linear" not in tags:
        for part in range(4):
            lines += _box(150 + 38 * part, 104, 34, 48, kind="new" if part == 1 else "open")
        lines += _text(225, 172, "parts of the cell: a step trains some", "soft")
    else:
        inner = "a change of weights" if "linear" in tags else "down, activation, up"
        inner = "LoRA experts and a router" if name in CHOSEN else inner
        lines += [*_box(150, 104, 150, 48, name, "new"), *_text(225, 172, inner, "soft")]
    # both meet in a sum
    lines += [_line((300, 128), (440, 128), (440, 64)), *_sum(440, 48)]
    lines += [*_arrow((454, 48), (520, 48)), *_text(534, 53, "y")]
    after = "afterwards folded: no extra layer" if "folds" in tags else "stays next to the layer"
    lines += _text(440, 150, after, "soft")
    return lines, 184, f"{name}: a cell next to a frozen layer; {after}"


def _sum(x: float, y: float) -> Lines:
    """Return the SVG of a plus in a circle."""
    ring = f'<circle class="line" cx="{x:g}" cy="{y:g}" r="13"/>'
    return [ring, _line((x - 6, y), (x + 6, y)), _line((x, y - 6), (x, y + 6))]


def _router(name: str, tags: set[str]) -> tuple[Lines, int, str]:
    """Draw a router between tokens and experts, with lines to the experts that each token has."""
    lines: Lines = _text(60, 20, "tokens", "soft") + _text(470, 20, "experts", "soft")
    tokens, experts = (44.0, 80.0, 116.0, 152.0), (44.0, 80.0, 116.0, 152.0)
    # the first expert of a token is drawn as a full line, the others faint
    choices: Sequence[Sequence[int]] = ((0, 1), (0, 3), (2, 1), (3, 2))
    choices = [pair[:1] for pair in choices] if name in ONE else choices
    for y, chosen_experts in zip(tokens, choices, strict=True):
        lines.append(f'<circle class="line" cx="60" cy="{y:g}" r="9"/>')
        lines.append(_line((69, y), (210, y), kind="open"))
        for number, expert in enumerate(chosen_experts):
            kind = "line" if number == 0 else "open"
            lines.append(_line((330, y), (420, experts[expert]), kind=kind))
    for number, y in enumerate(experts):
        lines += _box(420, y - 13, 100, 26, f"expert {number + 1}", "box")
        # three slots: an expert takes no more tokens
        if "capacity" in tags:
            lines += [_line((x, y + 9), (x + 14, y + 9)) for x in (440, 462, 484)]
    says = "a learned gate" if "learned" in tags else "a rule, nothing learned"
    lines += [*_box(210, 34, 120, 128, name, "new"), *_text(270, 184, says, "soft")]
    notes = {
        "non_causal": "looks at all tokens of the batch",
        "stateful": "reads the layer before",
        "stochastic": "draws while training",
        "capacity": "an expert takes so many tokens",
    }
    remarks = [text for tag, text in notes.items() if tag in tags]
    if remarks:
        lines += _text(270, 204, "; ".join(remarks), "soft")
    return lines, 212 if remarks else 192, f"{name}: {says} chooses experts for tokens"


def _stack(kinds: Sequence[str], texts: Sequence[str], y: float = 44) -> Lines:
    """Draw blocks from left to right, with lines between them."""
    lines: Lines = []
    wide = (WIDTH - 40) / len(kinds) - 14
    for number, (kind, text) in enumerate(zip(kinds, texts, strict=True)):
        x = 20 + number * (wide + 14)
        lines += _box(x, y, wide, 54, text, kind)
        if number:
            lines.append(_line((x - 14, y + 27), (x, y + 27)))
    return lines


def _baseline(name: str, tags: set[str]) -> tuple[Lines, int, str]:
    """Draw a model's blocks, those that a baseline trains filled."""
    texts = ["input", *(f"{n}" for n in range(1, BLOCKS)), "head"]
    trained: Iterable[int] = {"linear": (6,), "full": range(7), "last-k": (5, 6)}.get(name, (6,))
    kinds = ["new" if n in trained else "box" for n in range(len(texts))]
    lines = _stack(kinds, texts)
    # small boxes below the blocks: parts that are trained inside of each
    per_block = {"bitfit": "biases", "norms": "norms", "vpt-deep": "prompts"}.get(name)
    if per_block or name == "vpt-shallow":
        wide = (WIDTH - 40) / len(texts)
        for n in range(1, BLOCKS) if per_block else (0,):
            lines += _box(20 + n * wide, 108, wide - 14, 14, kind="new")
        lines += _text(280, 142, f"{per_block or 'prompts'}, trained", "soft")
    lines += _text(280, 26, "filled: trained; outlined: frozen", "soft")
    return lines, 152 if per_block or name == "vpt-shallow" else 112, f"{name}: the trained part"


def _mixture(name: str, tags: set[str]) -> tuple[Lines, int, str]:
    """Draw a layer that becomes a router and experts."""
    # left the layer as it was, right the router and experts in its place
    lines = [*_box(20, 58, 110, 54, "layer"), *_arrow((130, 85), (200, 85))]
    lines += [*_text(165, 74, "becomes", "soft"), *_box(200, 58, 84, 54, "router", "new")]
    for number, y in enumerate((12, 58, 104)):
        lines += [_line((284, 85), (330, y + 20), kind="line" if number == 1 else "open")]
        lines += [*_box(330, y, 110, 40, f"expert {number + 1}", "new")]
        lines += [_line((440, y + 20), (496, 85), kind="line" if number == 1 else "open")]
    lines += [*_sum(509, 85), *_arrow((522, 85), (552, 85)), *_text(280, 168, name, "soft")]
    return lines, 178, f"{name}: experts and a router instead of a layer"


# a drawing stands on the pages of the methods that it shows, not on all of their kind
_DRAWINGS: Mapping[str, Callable[[str, set[str]], tuple[Lines, int, str]]] = {
    **dict.fromkeys(("lora", "bottleneck", "mosa", *CHOSEN), _adapter),
    **dict.fromkeys(("topk", "noisy_topk", "recurrent", "expert_choice", *ONE), _router),
    **dict.fromkeys(("linear", "full", "last-k", "bitfit", "norms"), _baseline),
    **dict.fromkeys(("vpt-deep", "vpt-shallow"), _baseline),
    "upcycle": _mixture,
}


def when(card: Mapping[str, Any]) -> str:
    """Return when to use a method, by its kind and tags, and when not, from its docstring.

    card: its description from the index.
    """
    tags, use = set(card["tags"]), ""
    if card["kind"] == "adapter":
        # a change that is found in phases trains the weights themselves in the first
        phased = card["phased"] and "folds" in tags
        use = "a pretrained model "
        use += "that can be trained whole once" if phased else "with weights that stay frozen"
        use += "; it folds into a stock model" if "folds" in tags else "; it stays a part of it"
        # a draw in each step is a noise, which helps where data are few
        use += "; it regularises: few samples, many passes" if "stochastic" in tags else ""
    elif card["kind"] == "router":
        use = "mixtures in encoders, as of pictures" if "non_causal" in tags else "any mixture"
        use += ", with a bound on each expert's tokens" if "capacity" in tags else ""
        use += "" if "learned" in tags else "; a baseline for routers that learn"
    elif card["kind"] == "baseline":
        use = "a comparison: what an adapter has to beat"
    lines = [f"**Use it for** {use}."] if use else []
    if refused := refusal(card["doc"])[1]:
        words = refused.split(" ")
        lines.append(f"**{' '.join(words[:2])}** {' '.join(words[2:])}")
    return "  \n".join(lines)


def refusal(doc: str) -> tuple[str, str]:
    """Return a docstring without its sentences on when not to use it, and those sentences.

    They begin with "Not for", "Not when" and the like, and end at an empty line or before
    "Raises" and "Source"; "" without any.
    """
    # within a paragraph, too: a sentence is found by the stop before it
    begin = REFUSED.search(doc)
    if begin is None:
        return doc, ""
    end = ENDED.search(doc, begin.end())
    stop = end.start() if end else len(doc)
    words = " ".join(doc[begin.start() : stop].split())
    rest = f"{doc[: begin.start()].rstrip()}\n{doc[stop:].lstrip(' ')}"
    return rest.strip(), words.rstrip(".") + "."
