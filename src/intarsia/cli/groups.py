"""The commands by their purpose, as the help shows them, and three to begin with."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.plugins import LABORATORY

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Adapt": ("fit", "compare", "auto", "predict", "evaluate", "report", "blend", "export"),
    "Sparse": ("sparsify", "compress", "convert", "generate", "merge", "spans"),
    "Experts": (
        *("trace", "place", "simulate", "offload", "serve", "unlearn", "combine"),
        "compare-routers",
    ),
    "Search and recommend": ("index", "search", "recommend"),
    "Signals": ("components", "codec"),
    "Evidence": ("bench", "reproduce", "cycles", "doctor", "list", "show", "demo"),
}
HOMES: Mapping[str, str] = {
    "auto": "choosing:auto",
    "blend": "blending:blend",
    "codec": "codec:codec",
    "combine": "combining:combine",
    "compare": "comparing:compare",
    "components": "components:components",
    "compress": "compressing:compress",
    "convert": "sparsifying:convert",
    "cycles": "cycles:cycles",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "evaluate": "scoring:evaluate",
    "export": "exporting:export",
    "fit": "training:fit",
    "generate": "decoding:generate",
    "index": "searching:index",
    "list": "listing:list_methods",
    "merge": "merging:merge",
    "offload": "offloading:offload",
    "place": "placing:place",
    "predict": "scoring:predict",
    "recommend": "recommending:recommend",
    "report": "comparing:report",
    "search": "searching:search",
    "serve": "serving:serve",
    "show": "listing:show",
    "simulate": "simulating:simulate",
    "spans": "decoding:spans",
    "sparsify": "sparsifying:sparsify",
    "trace": "placing:trace",
    "unlearn": "unlearning:unlearn",
}
"""Module and function of each command of this distribution, imported when it is called."""
LABORATORY_MARK = "(laboratory)"
"""Stands in the list of commands before what a command of the laboratory does."""
OTHERS = "Others"
"""The heading of commands that a further distribution adds."""
TO_BEGIN_WITH: Mapping[str, str] = {
    "intarsia auto photos --minutes 10": "choose a method for pictures",
    "intarsia compare photos --methods linear,lora": "see which method is better",
    "intarsia sparsify smollm2 --out half": "drop half of all weights",
}


def group_of(command: str) -> str:
    """Return the heading under which a command stands."""
    return next((group for group, names in GROUPS.items() if command in names), OTHERS)


def overview() -> str:
    """Return the answer to `intarsia` alone: the groups, and the commands to begin with."""
    wide, wider = max(map(len, GROUPS)), max(map(len, TO_BEGIN_WITH))
    return "\n".join(
        [
            "Make a pretrained PyTorch model smaller, sparser or more specialised.\n",
            *(f"  {group:{wide}}  {', '.join(names)}" for group, names in GROUPS.items()),
            "\nTo begin with:\n",
            *(f"  {command:{wider}}  {purpose}" for command, purpose in TO_BEGIN_WITH.items()),
            f"\nOf the laboratory (in a clone: pip install ./lab): {', '.join(LABORATORY)}.",
            "All commands, each in a line: intarsia --help. One of them: intarsia fit --help.",
        ]
    )
