"""Decoding of a mixture by native steps, with all experts in memory and with a quarter of them.

    python benchmarks/offloaded.py --upcycle smollm2-mixtral     # copies of SmolLM2's MLPs: Mixtral
    intarsia trace smollm2-mixtral python-docs --rows 16 --length 64 --out trace.safetensors
    python benchmarks/offloaded.py smollm2-mixtral trace.safetensors --write

and next to llama.cpp, with files of `intarsia export smollm2 --format gguf --quant q4_0`:

    python benchmarks/offloaded.py --upcycle smollm2-mixtral --dense smollm2-q4_0.gguf
    python benchmarks/offloaded.py MIXTURE TRACE --gguf smollm2-mixtral/smollm2-q4_0.gguf

One text and four streams are decoded greedily. The link to the experts is throttled: a read sleeps
until twice the time of an expert's product has passed, which is measured here. Policies take turns,
so that other work on the machine meets all of them alike; ratios are medians over the turns, of the
model's own forward and of native steps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import least, of_model, ours
from frame import markdown, parser, publish, read
from routing import IMPLEMENTATIONS
from token_peers import Arm, peers_of
from transformers import DynamicCache, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia.data.calibration import load_calibration
from intarsia.data.language_models import language_model
from intarsia.decode.native_decoder import NativeText
from intarsia.kernels import native
from intarsia.offloading.resident import slots_of
from intarsia.placement import Trace
from intarsia.placement.expertflow import Predictive, TokenTable
from intarsia.placement.policies import Expected, Lru

SLOW = 2.0  # the link's time of an expert in products of one
EXPERTS, ACTIVE = 8, 2  # of a layer of SmolLM2 as a mixture, and of a token
SLOTS = 0.25  # share of the experts that is in memory
TEXTS = "gcide,foldoc,python-docs"  # that judge
PROMPTS = (
    "It is a truth universally acknowledged, that a single man",
    "def read(path, encoding=None): return the text of a file",
    "a small round fruit of several plants, with a hard shell",
    "She had not been long in the house before her sister",
)
RESIDENT = "all experts in memory"
HEAD = ("experts", "own forward", "least - most", "native steps", "hits")


@torch.no_grad()
def upcycled(folder: Path) -> None:
    """Write SmolLM2 as a Mixtral: each expert is a copy of its layer's MLP, routers are random.

    Weights of a token's experts sum to 1, so that the outputs are SmolLM2's.
    """
    whole, tokenizer = language_model("smollm2")
    source: Any = whole
    shared = source.config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters")
    names += ("max_position_embeddings", "bos_token_id", "eos_token_id", "tie_word_embeddings")
    config = MixtralConfig(
        **{n: shared[n] for n in names}, num_local_experts=EXPERTS, num_experts_per_tok=ACTIVE
    )
    torch.manual_seed(0)
    mixture: Any = MixtralForCausalLM(config)
    weights = {n: w for n, w in source.state_dict().items() if ".mlp." not in n}
    for number, layer in enumerate(source.model.layers):
        place, mlp = f"model.layers.{number}.mlp.experts.", layer.mlp
        pair = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        weights[f"{place}gate_up_proj"] = pair.expand(EXPERTS, -1, -1)
        weights[f"{place}down_proj"] = mlp.down_proj.weight.expand(EXPERTS, -1, -1)
    missing, unexpected = mixture.load_state_dict(weights, strict=False)
    assert not unexpected and all("gate" in name for name in missing), (missing, unexpected)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    torch.testing.assert_close(mixture(ids).logits, source(ids).logits, atol=1e-3, rtol=1e-3)
    mixture.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def product_seconds(model: Any) -> float:
    """The median time of one expert on one row, as it is in the resident model."""
    experts = model.model.layers[0].mlp.experts
    width = model.config.hidden_size
    row, weight = torch.randn(1, width, dtype=model.dtype), torch.ones(1, 1, dtype=model.dtype)
    none, one = torch.zeros(0, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        empty = timed(lambda: experts(row[:0], none, weight[:0]))
        return max(1e-6, timed(lambda: experts(row, one, weight)) - empty)


def timed(of: Callable[[], Any], count: int = 200) -> float:
    """The median of so many calls, in seconds."""
    found: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        of()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def throttled(model: Any, seconds: float) -> None:
    """From here on the link takes so long for an expert, one after another, and no processor.

    What a sleep takes beyond its time is the clock's, not the link's, and does not add up.
    """
    thread, free = slots_of(model).thread, 0.0
    submit = thread.submit

    def asked(read: Callable[..., int], *given: Any) -> Any:
        came = time.perf_counter()

        def slow() -> int:
            nonlocal free
            free = max(came, free) + seconds
            size = read(*given)
            time.sleep(max(0.0, free - time.perf_counter()))
            return size

        return submit(slow)

    thread.submit = asked  # type: ignore[method-assign]


def decode(model: Any, rows: dict[str, torch.Tensor], tokens: int) -> tuple[float, torch.Tensor]:
    """Seconds of a step of decoding, after the prompt, and the tokens."""
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        out = model(**rows, cache=cache)
        mask, made = rows["attention_mask"], list[torch.Tensor]()
        began = time.perf_counter()
        for _ in range(tokens):
            new = out.logits[:, -1].argmax(-1, keepdim=True)
            made.append(new)
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            out = model(new, attention_mask=mask, cache=cache)
        return (time.perf_counter() - began) / tokens, torch.cat(made, 1)


def decode_by_steps(
    model: Any, rows: dict[str, torch.Tensor], tokens: int
) -> tuple[float, torch.Tensor]:
    """Seconds of a step of decoding by native steps, after the prompt, and the tokens."""
    ids, mask = rows["input_ids"], rows["attention_mask"]
    text = NativeText(model, slots=len(ids), length=ids.shape[1] + tokens)
    logits, made = text.prefill_rows(ids, mask), list[torch.Tensor]()
    began = time.perf_counter()
    for _ in range(tokens):
        made.append(logits.argmax(-1, keepdim=True))
        logits = text.step(made[-1].flatten().tolist())
    return (time.perf_counter() - began) / tokens, torch.cat(made, 1)


@dataclass(frozen=True)
class Turns:
    """What the turns gave, by the arm: a step's time over the resident model's.

    by_forward, by_steps: of each turn; seconds: of the resident model's step; equal: share of the
    tokens that native steps, which round differently, have in common with the forward.
    """

    by_forward: Mapping[str, list[float]]
    by_steps: Mapping[str, list[float]]
    seconds: list[float]
    equal: float


def in_turns(resident: Any, arms: Mapping[str, Any], rows: Any, turns: int, tokens: int) -> Turns:
    """Decode with all arms in each turn; the tokens of their forwards must be the same."""
    by_forward: dict[str, list[float]] = {name: [] for name in arms}
    by_steps: dict[str, list[float]] = {name: [] for name in arms}
    equal, base = list[float](), list[float]()
    for turn in range(turns + 1):
        seconds, want = decode(resident, rows, tokens)
        for name, model in arms.items():
            took, got = decode(model, rows, tokens)
            assert torch.equal(got, want), f"{name} says something else"
            stepped, got = decode_by_steps(model, rows, tokens)
            equal.append(float((got == want).double().mean()))
            if turn:  # the first one fills slots and caches
                by_forward[name].append(took / seconds)
                by_steps[name].append(stepped / seconds)
        base.append(seconds)
    return Turns(by_forward, by_steps, base[1:], min(equal))


def with_experts(dense: Path, target: Path) -> None:
    """Write a GGUF file of SmolLM2 as the file of the mixture that `upcycled` writes.

    dense: of `intarsia export smollm2 --format gguf`; its blocks are copied as they are.
    """
    import gguf

    source, writer = gguf.GGUFReader(dense), gguf.GGUFWriter(target, "llama")
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        parts = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=parts)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(ACTIVE)
    draw = np.random.default_rng(0)
    for tensor in source.tensors:
        name, data = tensor.name, tensor.data
        if ".ffn_" in name and ".ffn_norm." not in name:
            name = name.replace(".weight", "_exps.weight")
            data = np.repeat(data[None], EXPERTS, 0)
        if ".ffn_norm." in name:
            router = draw.normal(0, 0.02, (EXPERTS, len(data))).astype(np.float32)
            writer.add_tensor(name.replace("_norm.", "_gate_inp."), router)
        writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def megabytes(model: Any) -> float:
    """Megabytes of the weights that a token reads: of the experts those that it has."""
    share = model.config.num_experts_per_tok / model.config.num_local_experts
    sizes = (
        weight.nbytes * (share if ".experts." in name else 1)
        for name, weight in model.named_parameters()  # the head is the embedding
    )
    return sum(sizes) / 1e6


def stock(name: str, model: Any, ids: list[int], experts: str) -> Arm:
    """The model's own forward, one token at a time.  experts: their implementation."""
    cache: Any = None

    @torch.no_grad()
    def feed(tokens: list[int]) -> float:
        started = time.process_time()
        model(torch.tensor([tokens]), cache=cache, use_cache=True)
        return 1e3 * (time.process_time() - started)

    def start() -> None:
        nonlocal cache
        cache = DynamicCache(config=model.config)
        model.set_experts_implementation(experts)
        feed(ids)

    return Arm(name, start, lambda: feed([5]), partial(of_model, model), megabytes(model))


def one_text(resident: Any, tokenizer: Any, args: argparse.Namespace) -> list[str]:
    """Milliseconds of a token, megabytes that it reads and perplexity, of one text."""
    ids, arms = tokenizer(PROMPTS[0]).input_ids, list[Arm]()
    half = copy.deepcopy(resident).bfloat16()
    for weights, model in (("float32", resident), ("bfloat16", half)):
        steps = ours(f"intarsia, {weights}", model, ids, "dense", None, 1)
        steps = replace(steps, megabytes=megabytes(model))
        arms.append(steps)
        for experts in IMPLEMENTATIONS:
            name = f"transformers {experts}, {weights}"
            arms.append(replace(stock(name, model, ids, experts), score=steps.score))
    peers, left_out = peers_of({"llama.cpp": args.gguf}, ids, args.threads)
    left_out = [line for line in left_out if line.startswith("llama.cpp")]  # the one rival here
    share = arms[0].megabytes / sum(w.nbytes / 1e6 for w in resident.parameters())
    arms += [replace(peer, megabytes=peer.megabytes * share) for peer in peers]
    spent = least(arms, args.reps)
    rows = load_calibration(TEXTS, tokenizer, rows=3, test=0, length=255).train
    judged_rows = [row["input_ids"] for row in rows]
    for model in (resident, half):
        model.set_experts_implementation("eager")  # others copy the weights for each row
    quality = {arm.score: arm.score(judged_rows) for arm in arms}  # of each model once
    lines = [
        (a.name, f"{spent[a.name]:.2f}", f"{a.megabytes:.0f}", f"{quality[a.score]:.2f}")
        for a in arms
    ]
    return [*markdown(("one text", "ms a token", "MB read", "perplexity"), lines), "", *left_out]


def table_of(turns: Turns, arms: Mapping[str, Any]) -> list[str]:
    """A row for each arm."""
    lines: list[Sequence[str]] = []
    for name, ratios in turns.by_forward.items():
        resident = name == RESIDENT
        median = statistics.median(ratios)
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        rate = "" if resident else f"{intarsia.offloading.residency(arms[name]).rate:.3f}"
        steps = f"{statistics.median(turns.by_steps[name]):.3f}"
        lines.append((name, f"{median:.3f}", spread, steps, rate))
    return markdown(HEAD, lines)


def run(args: argparse.Namespace) -> list[str]:
    """Measure one text, and with a trace four streams."""
    whole, tokenizer = language_model(args.model)
    resident: Any = whole.eval()
    resident.set_experts_implementation("eager")
    resident.config.use_cache = True
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = dict(tokenizer(list(PROMPTS), return_tensors="pt", padding=True, padding_side="left"))
    rows = {name: rows[name] for name in ("input_ids", "attention_mask")}
    config, size = resident.config, sum(p.numel() for p in resident.parameters())
    about = (
        f"{Path(args.model).name}: {size / 1e6:.1f} million weights, {config.num_hidden_layers} "
        f"layers of {config.num_local_experts} experts of {config.intermediate_size} units, "
        f"{config.num_experts_per_tok} a token. Kernels: {native.instructions()}; {args.threads} "
        "thread."
    )
    lines = [about, "", *one_text(resident, tokenizer, args)]
    return [*lines, "", *streams(resident, rows, args)] if args.trace else lines


def streams(resident: Any, rows: Any, args: argparse.Namespace) -> list[str]:
    """Each policy's time of a step over the resident model's, of four streams in float32."""
    with tempfile.TemporaryDirectory() as folder:
        resident.save_pretrained(Path(folder) / "m")
        store = intarsia.offloading.pack_experts(Path(folder) / "m", Path(folder) / "s")
        table = TokenTable.of(Trace.load_file(args.trace))
        foreseen = intarsia.offload(store, slots=SLOTS, policy=Predictive(), predictor=table)
        arms: dict[str, Any] = {
            RESIDENT: resident,
            "`Expected()`": intarsia.offload(store, slots=SLOTS, policy=Expected()),
            "`Lru()`": intarsia.offload(store, slots=SLOTS, policy=Lru()),
            "`Predictive()`, token table": foreseen,
        }
        product = product_seconds(resident)
        for name, model in arms.items():
            if name != RESIDENT:
                throttled(model, SLOW * product)
        turns = in_turns(resident, arms, rows, args.reps, args.tokens)
        lines = table_of(turns, arms)
    return [
        f"{len(PROMPTS)} streams in float32, a step over one of the model's own forward with all "
        f"experts in memory ({1e3 * statistics.median(turns.seconds):.1f} ms). An expert's product "
        f"takes {1e3 * product:.3f} ms, a read {1e3 * SLOW * product:.3f} ms. Of the native steps' "
        f"tokens {100 * turns.equal:.0f} % are the forward's.",
        "",
        *lines,
    ]


ABOUT = """\
Greedy decoding with a mixture of experts. One text: the least CPU time of a token, with all experts
in memory, by native steps (`intarsia generate`), by transformers' forward in each of its
implementations of experts, and by llama.cpp, in a process of its own. Perplexity is on texts
that nothing was trained or calibrated on. Four streams: a quarter of the experts in memory, the
others behind a link that takes twice an expert's product for each; wall time, since a read sleeps,
and the median of the turns. All take turns. Outputs of an offloaded forward are compared: they are
the same to the last bit. llama.cpp reads experts from the file as the system's pages come, and has
no such cache: its row is the one with all in memory."""


def main() -> None:
    made = parser(__doc__, threads=1, reps=5)
    made.add_argument("model", nargs="?", help="a mixture of save_pretrained")
    made.add_argument("trace", nargs="?", help="of this model, on other text; without, one text")
    made.add_argument("--gguf", type=Path, nargs="*", default=[], help="the mixture for llama.cpp")
    made.add_argument("--upcycle", type=Path, help="only write SmolLM2 as a mixture to this folder")
    made.add_argument("--dense", type=Path, nargs="*", default=[], help="GGUF files of SmolLM2")
    made.add_argument("--tokens", type=int, default=24)
    args = read(made)
    if args.upcycle:
        upcycled(args.upcycle)
        for file in args.dense:
            with_experts(file, args.upcycle / file.name)
    elif not args.model:
        made.error("a mixture is needed")
    else:
        publish("Decoding with a mixture of experts", ABOUT, run(args), args)


if __name__ == "__main__":
    main()
