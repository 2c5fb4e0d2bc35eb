"""SmolLM2's tokens a second: dense, pruned and packed, in our loop and in transformers' own.

    python benchmarks/decode.py --write

One thread; CPU time, since other work on the machine only adds to wall time. Kernels are compiled
at the first use.
"""

from __future__ import annotations

import frame

from intarsia.kernels import native
from intarsia_lab.claims import sparse_decode

BAR = 2.0
ABOUT = (
    "SmolLM2-135M, batch 1, greedy, after a prompt of about ten tokens: the median CPU time of a "
    "token, keys and values in memory that is taken once. Half of the weights inside the blocks "
    "are pruned by size and kept in int8 behind a bitmask; the head is whole."
)


def main() -> None:
    args = frame.read(frame.parser(__doc__, threads=1, reps=3))
    sparse_decode.TURNS = args.reps
    found = sparse_decode.times_of(sparse_decode.PROMPTS[0], print)
    dense = found[sparse_decode.DENSE]
    rows = [
        [name, f"{seconds * 1e3:.1f}", f"{1 / seconds:.1f}", f"{dense / seconds:.2f}"]
        for name, seconds in found.items()
    ]
    got = dense / found[sparse_decode.PACKED]
    verdict = "met" if got >= BAR else "not met"
    body = [
        *frame.markdown(["weights", "ms a token", "tokens a second", "over dense bf16"], rows),
        "",
        f"Bar: int8 behind a bitmask at least {BAR:.1f} times dense bfloat16 in the same loop: "
        f"{got:.2f}, {verdict}. Kernels: {native.kind() or 'none, weights are decoded once'}.",
    ]
    frame.publish("Tokens a second", ABOUT, body, args)


if __name__ == "__main__":
    main()
