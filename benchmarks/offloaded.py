"""Decoding with a quarter of the experts in memory beside all of them, behind a slow link.

    python benchmarks/offloaded.py MIXTURE TRACE --write

Four streams are decoded greedily. The link to the experts is throttled: a read sleeps until twice
the time of an expert's product has passed, which is measured here. Policies take turns, so that
other work on the machine meets all of them alike; ratios are medians over the turns, of the
model's own forward and of native steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import intarsia
from intarsia.data.language_models import language_model
from intarsia.hosts.native_decoder import NativeText
from intarsia.hosts.offload.resident import slots_of
from intarsia.placement import Trace
from intarsia.placement.expertflow import Predictive, TokenTable
from intarsia.placement.policies import Expected, Lru

RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "offloaded.json"
TARGET, SLOW = 1.6, 2.0  # the target; the link's time of an expert in products of one
PROMPTS = (
    "It is a truth universally acknowledged, that a single man",
    "def read(path, encoding=None): return the text of a file",
    "a small round fruit of several plants, with a hard shell",
    "She had not been long in the house before her sister",
)


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


def run(source: str, trace: str, turns: int, tokens: int) -> dict[str, Any]:
    """Each policy's time of a step over the resident model's."""
    whole, tokenizer = language_model(source)
    resident: Any = whole.eval()
    resident.set_experts_implementation("eager")
    resident.config.use_cache = True
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = dict(tokenizer(list(PROMPTS), return_tensors="pt", padding=True, padding_side="left"))
    rows = {name: rows[name] for name in ("input_ids", "attention_mask")}
    table = TokenTable.of(Trace.load_file(trace))
    with tempfile.TemporaryDirectory() as folder:
        resident.save_pretrained(Path(folder) / "m")
        store = intarsia.offloading.pack_experts(Path(folder) / "m", Path(folder) / "s")
        arms: dict[str, Any] = {
            "expected": intarsia.offload(store, slots=0.25, policy=Expected()),
            "lru": intarsia.offload(store, slots=0.25, policy=Lru()),
            "predictive": intarsia.offload(store, slots=0.25, policy=Predictive(), predictor=table),
        }
        product = product_seconds(resident)
        for model in arms.values():
            throttled(model, SLOW * product)
        models = {"again": resident, **arms}
        ratios: dict[str, list[float]] = {name: [] for name in models}
        by_steps: dict[str, list[float]] = {name: [] for name in models}
        equal, base = list[float](), list[float]()
        for turn in range(turns + 1):
            seconds, want = decode(resident, rows, tokens)
            for name, model in models.items():
                took, got = decode(model, rows, tokens)
                assert torch.equal(got, want), f"{name} says something else"
                stepped, got = decode_by_steps(model, rows, tokens)
                equal.append(float((got == want).double().mean()))
                if turn:  # the first one fills slots and caches
                    ratios[name].append(took / seconds)
                    by_steps[name].append(stepped / seconds)
            base.append(seconds)
        found = {name: intarsia.offloading.residency(model).rate for name, model in arms.items()}
    return {
        "streams": len(PROMPTS),
        "slots": 0.25,
        "turns": turns,
        "tokens": tokens,
        "product_ms": round(product * 1e3, 4),
        "read_ms": round(SLOW * product * 1e3, 4),
        "resident_step_ms": round(statistics.median(base) * 1e3, 2),
        "bar": TARGET,
        "ratio": {name: round(statistics.median(r), 3) for name, r in ratios.items()},
        "by_steps": {name: round(statistics.median(r), 3) for name, r in by_steps.items()},
        "equal_tokens_by_steps": round(min(equal), 3),  # they round differently
        "spread": {name: [round(min(r), 3), round(max(r), 3)] for name, r in ratios.items()},
        "hit_rate": {name: round(rate, 3) for name, rate in found.items()},
    }


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a mixture of save_pretrained")
    parser.add_argument("trace", help="of this model, on other text")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--write", action="store_true", help=f"to {RESULTS.name}")
    given = parser.parse_args()
    text = json.dumps(run(given.model, given.trace, given.turns, given.tokens), indent=1)
    print(text)
    if given.write:
        from intarsia.core.files import write_text

        write_text(RESULTS, text + "\n")


if __name__ == "__main__":
    main()
