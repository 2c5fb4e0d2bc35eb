"""A token of SmolLM2 in 4 bits with the columns of small inputs left out: time and perplexity.

    python benchmarks/skipping.py --write

As TEAL does (arXiv:2408.14690), without training: each linear layer has a limit, and the columns of
its weight whose inputs are no larger are not read. A limit is the quantile of |x| in calibration
texts; all layers leave out the same share, or shares that a greedy search gives them by damage. The
head stays dense. One thread; CPU time; all take turns on the same tokens of a text, and the least
time of each token counts, since tokens leave out different columns. Perplexity is measured on rows
of texts that nothing here was calibrated on, with columns left out of every token.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import frame
import torch
from decode import dominated, of_model
from token_peers import LENGTH
from torch import Tensor, nn

from intarsia.core import Format
from intarsia.data.calibration import load_calibration
from intarsia.data.language_models import language_model
from intarsia.decode.native_decoder import NativeText
from intarsia.formats import BlockInt
from intarsia.formats.packed_linear import PackedLinear
from intarsia.kernels import blockint, native, skipping
from intarsia.sparse.swap.compress import compress
from intarsia.sparse.swap.packed_head import pack_head, token_bytes

TARGET = 1.1  # perplexity over dense int4's
SHARES = (0.15, 0.25, 0.3, 0.4, 0.5)  # left out by all layers
BY_DAMAGE = (0.25, 0.4)  # left out by all layers together
GRID = [step / 20 for step in range(19)]  # shares for which a layer gets limits
PROMPT, TOKENS = 10, 24
ABOUT = (
    "SmolLM2-135M, batch 1, one thread: CPU time of a token, the bytes of weights that it reads, "
    "and perplexity on rows of texts that nothing was calibrated on. *int4 by column* is the dense "
    "row's weight in another order, the codes of a column side by side. A layer leaves out the "
    "columns whose inputs are no larger than its limit, the quantile of |x| in calibration texts "
    "(TEAL, [arXiv:2408.14690](https://arxiv.org/abs/2408.14690)); nothing is trained. *of all "
    "layers* is the same share in each of them; *by damage* are shares that a greedy search chose "
    "by the error of each layer's output. The head is in int8 and reads all of its weights, except "
    "where it is named. *left out* is measured on the texts that judge, and the head does not count. "
    "All take turns on the same tokens: of each token the least time, then the mean. A row is "
    "dominated by one that is no slower and no worse; the fastest of these is named."
)


@dataclass(frozen=True)
class ByColumn(Format):
    """The values of `BlockInt(4)`, stored by column, and a limit below which inputs are left out."""

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return "codes", "scales" and "limit", which is 0: nothing but zeros is left out."""
        return by_column(BlockInt(4).encode(weight, keep))

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the weight, whatever the limit is."""
        blocks = -(-shape[1] // blockint.BLOCK)
        codes, scales = skipping.rowwise(stored["codes"], stored["scales"], blocks)
        weight = (codes.float() - 8) * scales.float()[..., None]
        return weight.flatten(1)[: shape[0], : shape[1]]

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T over the inputs above the limit, rounded as the kernel rounds them."""
        q, steps = blockint.rounded(skipping.kept(x.flatten(0, -2), stored["limit"]))
        near = (q * steps[..., None]).flatten(1)[:, : shape[1]]
        return (near @ self.decode(stored, shape).T).view(*x.shape[:-1], shape[0])

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return the kernel's call; None without a kernel."""
        sides = shape[0], shape[1]
        return skipping.bound(stored["codes"], stored["scales"], stored["limit"], sides)


@dataclass(frozen=True)
class Seen:
    """limits: of |x|, for each share of GRID.  damage: share of the output's energy below them."""

    limits: list[float]
    damage: list[float]
    weights: int


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """Layers inside the blocks, by path."""
    named = model.named_modules()
    return {p: m for p, m in named if isinstance(m, PackedLinear) and p != "lm_head"}


def seen_by(x: Tensor, weight: Tensor) -> Seen:
    """Sort the inputs x (N, in) of a weight (out, in), and add up what each share of them gives."""
    sizes, order = x.abs().flatten().sort()
    energy = (x.square() * weight.square().sum(0)).flatten()[order].cumsum(0)
    ends = [round(share * len(sizes)) - 1 for share in GRID]
    limits = [float(sizes[end]) if end >= 0 else 0.0 for end in ends]
    damage = [float(energy[end] / energy[-1]) if end >= 0 else 0.0 for end in ends]
    return Seen(limits, damage, weight.numel())


@torch.inference_mode()
def calibrated(model: Any, rows: Sequence[Tensor]) -> dict[str, Seen]:
    """What each layer inside the blocks sees in calibration rows, by path.

    The first token of a row is left out: its inputs are many times as large.
    """
    seen: dict[str, Seen] = {}

    def look(path: str) -> Any:
        def hook(layer: PackedLinear, args: tuple[Tensor]) -> None:
            seen[path] = seen_by(args[0][:, 1:].flatten(0, 1), layer.weight)

        return hook

    hooks = [m.register_forward_pre_hook(look(p)) for p, m in packed_layers(model).items()]
    model(input_ids=torch.stack(list(rows)))
    for hook in hooks:
        hook.remove()
    return seen


def by_damage(seen: Mapping[str, Seen], share: float) -> dict[str, int]:
    """Places of GRID, by path, that leave out a share of all weights with little damage.

    Greedy: the step that adds the least damage for each weight that it leaves out comes first.
    """
    at = dict.fromkeys(seen, 0)
    wanted = share * sum(layer.weights for layer in seen.values())

    def cost(path: str) -> float:
        layer, place = seen[path], at[path]
        return (layer.damage[place + 1] - layer.damage[place]) / layer.weights

    while sum(layer.weights * GRID[at[path]] for path, layer in seen.items()) < wanted:
        at[min((path for path in at if at[path] + 1 < len(GRID)), key=cost)] += 1
    return at


def with_limits(model: Any, stored: Mapping[str, Any], limits: Mapping[str, float]) -> Any:
    """A copy of a model whose layers have these limits; stored: `ByColumn`'s tensors, by path."""
    made = copy.deepcopy(model)
    for path, layer in packed_layers(made).items():
        own = {**stored[path], "limit": torch.tensor([limits[path]])}
        made.set_submodule(path, PackedLinear(ByColumn(), own, layer.shape, layer.bias))
    return made


def judged(model: Any, rows: Sequence[Tensor]) -> tuple[float, float, float]:
    """Perplexity; the share of weights that is left out; bytes of weights that a token reads."""
    counts: dict[str, tuple[int, int]] = {}

    def look(path: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor]) -> None:
            counts[path] = int((args[0].abs() <= layer.limit).sum()), args[0].numel()

        return hook

    layers = {p: m for p, m in packed_layers(model).items() if isinstance(m.form, ByColumn)}
    hooks = [layer.register_forward_pre_hook(look(path)) for path, layer in layers.items()]
    quality = of_model(model, rows)
    for hook in hooks:
        hook.remove()
    unread = {path: out / all_of_them for path, (out, all_of_them) in counts.items()}
    weights = {path: layer.in_features * layer.out_features for path, layer in layers.items()}
    share = sum(unread[p] * weights[p] for p in unread) / max(1, sum(weights.values()))
    spared = sum(unread[p] * layers[p].stored["codes"].nbytes for p in unread)
    return quality, share, (token_bytes(model) or math.nan) - spared


def times(models: Mapping[str, Any], row: Tensor, turns: int) -> dict[str, float]:
    """Milliseconds of a token of each model: the least of each token of a row, then the mean."""
    texts = {name: NativeText(model, length=LENGTH) for name, model in models.items()}
    ids, names = row.tolist(), list(models)
    least = {name: [math.inf] * TOKENS for name in names}
    for turn in range(turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            texts[name].clear(0)
            texts[name].prefill(0, ids[:PROMPT])
            for place, token in enumerate(ids[PROMPT : PROMPT + TOKENS]):
                started = time.process_time()
                texts[name].step([token])
                spent = 1e3 * (time.process_time() - started)
                least[name][place] = min(least[name][place], spent)
    return {name: statistics.mean(spent) for name, spent in least.items()}


def models_of(model: Any, calibration: Sequence[Tensor]) -> dict[str, Any]:
    """All rows of the table, the dense ones first."""

    def dense(bits: int, head: int) -> Any:
        return pack_head(compress(copy.deepcopy(model), BlockInt(bits), force=True), head)

    made = {"dense int4": dense(4, 8), "dense int4, head int4": dense(4, 4)}
    made["dense int8"] = dense(8, 8)
    seen = calibrated(made["dense int4"], calibration)
    layers = packed_layers(made["dense int4"])
    stored = {path: by_column(layer.stored) for path, layer in layers.items()}
    places = {"int4 by column": dict.fromkeys(seen, 0)}
    for share in SHARES:
        places[f"int4, {share:.0%} of all layers"] = dict.fromkeys(seen, GRID.index(share))
    for share in BY_DAMAGE:
        places[f"int4, {share:.0%} by damage"] = by_damage(seen, share)
    for name, at in places.items():
        limits = {path: seen[path].limits[place] for path, place in at.items()}
        made[name] = with_limits(made["dense int4"], stored, limits)
    return made


def by_column(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The codes and scales of `BlockInt(4)` in another order, and a limit of 0."""
    codes = blockint.unbundled(stored["codes"], 4)
    scales = stored["scales"].transpose(1, 2).flatten(0, 1)  # (R, K)
    missing = -len(codes) % 64
    codes = nn.functional.pad(codes, (0, 0, 0, 0, 0, missing), value=8)
    scales = nn.functional.pad(scales, (0, 0, 0, missing))
    codes, scales = skipping.columnwise(codes, scales)
    return {"codes": codes, "scales": scales, "limit": torch.zeros(1)}


def verdict(
    spent: Mapping[str, float], loss: Mapping[str, float], better: Mapping[str, str]
) -> str:
    """The sentences about the target, and about what dense weights take at the same perplexity."""
    base, less = "dense int4", "dense int4, head int4"
    on = [n for n in loss if "%" in n and not better[n] and loss[n] <= TARGET * loss[base]]
    line = f"Not dense, on the front, at no more than {TARGET} of dense int4's perplexity: "
    if not on:
        return line + "none: not met."
    slope = (spent[less] - spent[base]) / (loss[less] - loss[base])
    said = [
        f"{n}, {spent[n]:.2f} ms, where the line between the two dense rows of 4 bits has "
        f"{spent[base] + slope * (loss[n] - loss[base]):.2f}"
        for n in on
    ]
    return line + f"{'; '.join(said)}."


def main() -> None:
    made = frame.parser(__doc__, threads=1, reps=15)
    made.add_argument("--texts", default="gcide,foldoc,python-docs", help="that judge")
    made.add_argument("--rows", type=int, default=12, help="of those texts")
    args = frame.read(made)
    model, tokenizer = language_model("smollm2", progress=lambda _: None)

    def rows(texts: str, count: int) -> list[Tensor]:
        split = load_calibration(texts, tokenizer, rows=count, test=0, length=LENGTH - 1)
        return [row["input_ids"] for row in split.train]

    report(models_of(model, rows("austen,wordnet", 4)), rows(args.texts, args.rows), args)


def report(models: Mapping[str, Any], rows: Sequence[Tensor], args: argparse.Namespace) -> None:
    """Time and judge all models, and publish the table."""
    spent = times(models, rows[0], args.reps)
    found = {name: judged(model, rows) for name, model in models.items()}
    loss = {name: quality for name, (quality, _, _) in found.items()}
    better = dominated(spent, loss)
    table = [
        [
            name,
            f"{share:.2f}" if share else "",
            f"{spent[name]:.2f}",
            f"{spent[name] / spent['dense int4']:.2f}",
            f"{size / 1e6:.0f}",
            f"{quality:.2f}",
            f"{quality / loss['dense int4']:.3f}",
            better[name],
        ]
        for name, (quality, share, size) in found.items()
    ]
    head = ["weights", "left out", "ms a token", "of dense int4", "MB read", "perplexity"]
    body = frame.markdown([*head, "of dense int4", "dominated by"], table)
    body += ["", verdict(spent, loss, better), ""]
    body.append(
        f"Kernels: {native.instructions()}. Calibrated on austen, wordnet; judged by {args.texts}."
    )
    frame.publish("Columns left out by the size of inputs", ABOUT, body, args)


if __name__ == "__main__":
    main()
