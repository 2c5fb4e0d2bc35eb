"""Eight techniques on a small trained mixture, alone and in pairs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from intarsia.runs.stack import StackTable, broken, stack_pairs
from intarsia.runs.stack_entries import ENTRIES

from ..kit import Report, Result, Study
from ..kit.arms import result_of, threads
from ..materials.held_out_rows import rows
from ..materials.routing_traces import made

CALIBRATION, MEASURED, BATCH = 32, 48, 16  # rows


@lru_cache
def table(seed: int, report: Report) -> StackTable:
    """Apply eight ways to shrink a small mixture, alone and in pairs; return what each gives.

    Each entry has loss in nats per token on held-out text, bytes and operations.
    """
    from transformers import MixtralForCausalLM

    model: Any = MixtralForCausalLM.from_pretrained(made(seed, report), dtype=torch.float32)
    model.config.use_cache = False
    blocks = rows(seed)
    rows_per_kind = [CALIBRATION // len(blocks), MEASURED // len(blocks)]
    # as much of each kind of text; rows that calibrate are not measured
    parts = [torch.cat([r[: rows_per_kind[0]] for r in blocks.values()])]
    parts += [torch.cat([r[-rows_per_kind[1] :] for r in blocks.values()])]
    batches = [[{"input_ids": ids} for ids in part.split(BATCH)] for part in parts]
    settings = {name: entry.default for name, entry in ENTRIES.items()}
    with threads(1):
        return stack_pairs(model, settings, *batches, report=report)


def failures(stack_table: StackTable) -> float:
    """Count the pairs of methods that were neither measured nor refused, and the laws that break.

    stack_table: measurements of methods alone and in pairs; eight methods make 28 pairs.
    """
    pairs = [names for names in (*stack_table.found, *stack_table.refused) if len(names) == 2]
    # a lossless pair that changes the loss counts, too
    return float(28 - len(pairs) + len(broken(stack_table)))


def run(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the failures of pairs of eight ways to shrink a mixture, by seed.

    The table is the first seed's.
    """
    tables = [table(seed, report) for seed in seeds]
    lines = [_row(row) for row in tables[0].rows()]
    lines += [
        {"entries": " + ".join(n), "nats": f"refused: {w}"} for n, w in tables[0].refused.items()
    ]
    note = f"{NOTE} SHA-256 of the first seed's: {tables[0].digest()[:16]}."
    return result_of([failures(stack_table) for stack_table in tables], lines, note)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a table row of text from the numbers measured on one or two methods together."""
    line = {
        "entries": row["entries"] + (" *" if row["front"] else ""),
        "nats": f"{row['cross_entropy']:.4f}",
        "MB": f"{row['bytes'] / 1e6:.2f}",
        "Mop a token": f"{row['operations'] / 1e6:.2f}",
        "hits": f"{row['hit_rate']:.3f}",
        "bytes sent": "-" if row["sent_bytes"] is None else f"{row['sent_bytes']:.0f}",
    }
    # pairs alone have an interaction: how far they are from the sum of both
    if (pair := row.get("interaction")) is not None:
        line["interaction"] = "{:+.4f} ({:+.4f} ... {:+.4f})".format(*pair)
    return line


NOTE = (
    "A small mixture trained for each seed; held-out text of four kinds. Defaults: prune and merge "
    "a quarter of the experts, a student of 2, one expert where g2 / g1 is below the median, low "
    "rank with 0.9 of the energy, int4 in groups of 64 for experts. * : none is better in nats, "
    "bytes and operations at once. interaction: nats beyond the sum of the two, 95 % over "
    "sequences. hits: a cache of a quarter of the experts, one stream. Bytes sent: a token, "
    "four devices."
)


STUDIES = (
    Study(
        "stack-pairs",
        system="Survey of compressed mixtures",
        arxiv="2412.14219",
        question="How many pairs of eight techniques neither combine nor say why?",
        effect=None,
        work="a small mixture, 28 pairs of changes",
        baseline="a pair runs, or is refused for a declared reason",
        unit="pairs of 28",
        differs="A survey: it says that techniques combine, and counts none.",
        measure=run,
        minutes=18,
    ),
)
