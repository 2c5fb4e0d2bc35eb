"""A token of SmolLM2 next to llama.cpp: milliseconds, bytes and perplexity in one row.

    python benchmarks/decode.py --gguf smollm2-q4_0.gguf smollm2-q8_0.gguf --packed folder --write

One thread; CPU time, since other work on the machine only adds to wall time; all take turns, and
the least time of a token counts. Other runtimes' files of the same model, with names that end in
their weights; each is left out, with a sentence, where its package is not installed:
--gguf: for llama.cpp (`pip install llama-cpp-python`, which compiles it), by `intarsia export`.
--openvino: folders such as smollm2-int4, by `optimum-cli export openvino --model FOLDER --task
text-generation-with-past --weight-format int4 --group-size 32 smollm2-int4` (optimum-intel, which
may want an older transformers, so an environment of its own).
--onnxruntime: by `python -m onnxruntime_genai.models.builder -i FOLDER -o smollm2-int4 -p int4 -e
cpu` (onnxruntime-genai).
--torchao: int8, int4 (torchao, and a C++ compiler; about two minutes for each, and less where
torch finds its compiled code in TORCHINDUCTOR_CACHE_DIR).
FOLDER: smollm2 in the cache, ~/.cache/intarsia/weights/smollm2-*. --packed: folders that `intarsia
compress` wrote of smollm2, such as gqsa's; a row has the folder's name.
Perplexity is measured on rows of texts that nothing here was calibrated on (`--texts`). --write
also writes the figures into rivals.json, from which `benchmarks/rivals.py` makes a page.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import frame
import torch
from token_peers import KINDS, LARGE_PAGES, LENGTH, Arm, peers_of, perplexity
from torch import Tensor, nn

from intarsia.data.calibration import load_calibration
from intarsia.data.language_models import language_model
from intarsia.decode.native_decoder import NativeText
from intarsia.folders.opened import open_language_model
from intarsia.formats import Bitmask, BlockInt, GroupSparse
from intarsia.formats.packed_linear import PackedLinear
from intarsia.formats.rivals import TIMES, RuntimeFigures, record
from intarsia.kernels import native
from intarsia.kernels.decoder import AttendStep, DecoderStep, NativeDecoder, ProductStep
from intarsia.kernels.native.floor import read_bandwidth
from intarsia.sparse.swap.compress import compress
from intarsia.sparse.swap.packed_head import pack_head, token_bytes

PROMPT = "The ship left the harbour before dawn, and"
WARM, TOKENS = 2, 8
FORMS = {Bitmask: "bitmask", GroupSparse: "gqsa", BlockInt: "blockint"}  # on the command line
PEER = "llama.cpp"
COMMAND = "intarsia compress MODEL --format blockint --bits {}{} --out small"  # dense
INT4_HEAD = "head int4"  # which the command is asked for; a head is in int8 otherwise
ABOUT = (
    "SmolLM2-135M, batch 1, after a prompt of about ten tokens: the least CPU time of a token, the "
    "bytes of all weights that it reads, and perplexity on rows of texts that nothing was "
    "calibrated on. Ours is one call of native steps a token; llama.cpp is built from its package "
    "`llama-cpp-python` for this processor, and has keys and values in float16, bfloat16 or "
    "float32, with flash attention or without, whichever is the fastest. OpenVINO's model comes "
    "from `optimum-cli export "
    "openvino`, with keys and values as its state; onnxruntime's from "
    "`onnxruntime_genai.models.builder`, with its fused attention; torchao's layers, weights alone "
    "in int8 or in int4 with 32 to a scale, are in transformers' model with a static cache, which "
    "torch compiles whole, with `freezing` and `max-autotune`. Each is in a process of its own, "
    f"with `GLIBC_TUNABLES={LARGE_PAGES}`: its weights are in large pages, too, as ours are. "
    "All take turns. *ms at the limit* is what the bytes take from memory; weights that stay in "
    "the processor's cache take less. A row is dominated by one that is no slower and no worse; "
    "the fastest of these is named. `groups int4 D rows R` are of `intarsia compress smollm2 "
    "--format gqsa --density D --shared R --rows 64 --head int4`; those that are not trained have "
    "`--steps 0,0`, some `--rows 32`. `bitmask int8 P sparsegpt` is of `intarsia sparsify smollm2 "
    "--method sparsegpt --density 0.5 --out pruned`, or `--pattern 2:4`, and `intarsia compress "
    "pruned --format bitmask --values int8 --head int4`: 2:4 has no format of its own, the bitmask "
    "stores it."
)


def ours(
    name: str, model: nn.Module, ids: list[int], form: str, bits: int | None, density: float
) -> Arm:
    """A model as native steps; its perplexity comes from its own forward."""
    text = NativeText(model, length=LENGTH)

    def start() -> None:
        text.clear(0)
        text.prefill(0, ids)

    def step() -> float:
        started = time.process_time()
        text.step([5])
        return 1e3 * (time.process_time() - started)

    score, steps = partial(of_model, model), text.program.steps
    megabytes = (token_bytes(model) or math.nan) / 1e6
    return Arm(name, start, step, score, megabytes, form, bits, density, steps)


@torch.inference_mode()
def of_model(model: Any, rows: Sequence[Tensor]) -> float:
    """Perplexity of a model's own forward."""
    # all rows together, so that a packed weight is decoded once
    return perplexity(model(input_ids=torch.stack(list(rows))).logits, rows)


def arms_of(args: argparse.Namespace, model: Any, ids: list[int]) -> list[Arm]:
    """Our arms among those that --arms names; others are not packed."""
    half = copy.deepcopy(model).bfloat16()

    def dense(bits: int, head: int) -> Any:
        # as the command line does it
        return pack_head(compress(copy.deepcopy(model), BlockInt(bits), force=True), head)

    makers: dict[str, tuple[Callable[[], Any], str, int | None]] = {
        "dense int4, head int8": (lambda: dense(4, 8), "blockint", 4),
        "dense bf16": (lambda: half, "dense", None),
        "dense int8": (lambda: dense(8, 8), "blockint", 8),
        "dense int4, head int4": (lambda: dense(4, 4), "blockint", 4),
    }
    arms = [
        ours(name, make(), ids, form, bits, 1)
        for name, (make, form, bits) in makers.items()
        if any(part in name for part in args.arms.split(";"))
    ]
    for folder in args.packed:
        packed, _ = open_language_model(str(folder), dtype="float32")
        form = next(m.form for m in packed.modules() if isinstance(m, PackedLinear))
        name = f"{folder.name.replace('-', ' ')}, {head_of(packed)}"
        bits, density = getattr(form, "bits", None), density_of(packed)
        arms.append(ours(name, packed, ids, FORMS[type(form)], bits, density))
    return arms


def density_of(model: nn.Module) -> float:
    """Return the share of weights that packed layers hold, in hundredths; groups count whole."""

    def kept(layer: PackedLinear) -> float:
        if isinstance(layer.form, GroupSparse):
            return layer.stored["codes"].numel() * 8 / layer.form.bits
        every = layer.in_features * layer.out_features
        return layer.stored["compressed"].numel() if isinstance(layer.form, Bitmask) else every

    packed = [m for p, m in model.named_modules() if isinstance(m, PackedLinear) and p != "lm_head"]
    weights = sum(m.in_features * m.out_features for m in packed)
    return round(sum(map(kept, packed)) / weights, 2)


def head_of(model: Any) -> str:
    """Name the type of a packed model's head."""
    bits = getattr(getattr(model.lm_head, "form", None), "bits", None)
    return f"head int{bits}" if bits else f"head {model.lm_head.weight.dtype}"


def least(arms: Sequence[Arm], turns: int) -> dict[str, float]:
    """The least CPU milliseconds of a token of each, in turns that begin with another each time."""
    best = dict.fromkeys((arm.name for arm in arms), math.inf)
    for turn in range(turns):
        shift = turn % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            arm.start()
            for token in range(WARM + TOKENS):
                spent = arm.step()
                best[arm.name] = min(best[arm.name], spent if token >= WARM else math.inf)
    return best


def parts_of(steps: Sequence[DecoderStep], turns: int) -> dict[str, float]:
    """Least milliseconds of each kind of steps at 64 tokens of text, and of a call of one step."""
    kinds: dict[str, Callable[[object], bool]] = {
        "products": lambda step: isinstance(step, ProductStep),
        "attention": lambda step: isinstance(step, AttendStep),
        "norms, rotations, gates, sums": lambda s: not isinstance(s, (ProductStep, AttendStep)),
        "the call from Python": lambda step: step is steps[0],
    }
    best: dict[str, float] = {}
    for kind, is_of in kinds.items():
        program, least_ms = NativeDecoder([step for step in steps if is_of(step)], 1), math.inf
        for _ in range(20 * turns):
            started = time.process_time()
            program([5], [0], [64])
            least_ms = min(least_ms, 1e3 * (time.process_time() - started))
        best[kind] = least_ms
    return best


def main() -> None:
    made = frame.parser(__doc__, threads=1, reps=9)
    for name, kind in KINDS.items():
        made.add_argument(f"--{kind.option}", type=Path, nargs="*", default=[], help=f"of {name}")
    made.add_argument("--packed", type=Path, nargs="*", default=[], help="folders of compress")
    made.add_argument("--arms", default="dense", help="parts of names, by ;")
    made.add_argument("--texts", default="gcide,foldoc,python-docs", help="that judge")
    made.add_argument("--rows", type=int, default=6, help="of those texts")
    args = frame.read(made)
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    ids = tokenizer(PROMPT).input_ids
    rows = load_calibration(args.texts, tokenizer, rows=args.rows, test=0, length=LENGTH - 1).train
    judged = [row["input_ids"] for row in rows]
    arms = arms_of(args, model, ids)
    models = {name: getattr(args, kind.option) for name, kind in KINDS.items()}
    others, left_out = peers_of(models, ids, args.threads)
    arms += others
    spent = least(arms, args.reps)
    floor = read_bandwidth() / 1e6  # megabytes a millisecond are 1e9 bytes a second
    base = next((spent[a.name] for a in others if a.name.endswith("Q4_0")), math.nan)
    quality = {arm.name: arm.score(judged) for arm in arms}
    better = dominated(spent, quality)
    table = [
        [
            arm.name,
            f"{spent[arm.name]:.2f}",
            f"{spent[arm.name] / base:.2f}",
            f"{arm.megabytes:.0f}",
            f"{1e3 * arm.megabytes / floor:.1f}",
            f"{quality[arm.name]:.2f}",
            better[arm.name],
        ]
        for arm in arms
    ]
    if args.write:
        figures(arms, spent, quality, args.threads)
    head = ["weights", "ms a token", f"of {PEER} Q4_0", "MB read", "ms at the limit"]
    head += ["perplexity", "dominated by"]
    body = [*frame.markdown(head, table), "", front(arms, quality, better), ""]
    parts = parts_of(arms[0].steps, args.reps)
    rest = sum(parts.values()) - parts["products"]
    body += [
        f"Of {arms[0].name}: " + ", ".join(f"{k} {ms:.2f} ms" for k, ms in parts.items()) + ".",
        "",
        f"All steps but the products: {rest:.2f} ms. Memory reads {floor / 1e3:.1f} GB/s. Kernels: "
        f"{native.instructions()}. Texts that judge: {args.texts}. {' '.join(left_out)}".strip(),
    ]
    frame.publish("A token next to llama.cpp", ABOUT, body, args)


def figures(
    arms: Sequence[Arm], spent: dict[str, float], quality: dict[str, float], threads: int
) -> None:
    """Write the run into rivals.json, which `compress`, `bench sparse` and `doctor` read."""
    choices = [
        RuntimeFigures(
            arm.name,
            arm.form,
            round(spent[arm.name], 2),
            round(arm.megabytes),
            round(quality[arm.name], 1),
            arm.bits,
            arm.density,
            COMMAND.format(arm.bits, " --head int4" * (INT4_HEAD in arm.name))
            if arm.form == "blockint"
            else "",
        )
        for arm in arms
    ]
    record("text", frame.timed_run("perplexity", choices, threads))


def dominated(spent: dict[str, float], quality: dict[str, float]) -> dict[str, str]:
    """Return the fastest row that is no slower and no worse than a row; "" for one on the front.

    spent: milliseconds; quality: perplexity; both are compared as the page prints them.
    """
    points = {name: (round(spent[name], 2), round(quality[name], 2)) for name in spent}

    def by(name: str) -> str:
        ms, loss = points[name]
        better = [
            other
            for other, point in points.items()
            if point != (ms, loss) and point[0] <= ms and point[1] <= loss
        ]
        return min(better, key=lambda other: points[other], default="")

    return {name: by(name) for name in points}


def front(arms: Sequence[Arm], quality: dict[str, float], better: dict[str, str]) -> str:
    """Name the rows on the front, and those there that are too far from our dense 4 bits."""
    dense = [quality[arm.name] for arm in arms if (arm.form, arm.bits) == ("blockint", 4)]
    limit = TIMES * min(dense, default=math.inf)
    on_front = [name for name in better if not better[name]]
    useful = [name for name in on_front if quality[name] <= limit]
    line = f"On the front of milliseconds against perplexity: {'; '.join(useful)}."
    if useless := [name for name in on_front if quality[name] > limit]:
        line += f" With more than {TIMES:g} times the perplexity of our dense 4 bits: "
        line += f"{'; '.join(useless)}."
    return line


if __name__ == "__main__":
    main()
