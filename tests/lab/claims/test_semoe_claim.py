"""SE-MoE's claim names the processes that it starts."""

from __future__ import annotations

from intarsia_lab.claims import semoe


def test_the_claim_names_its_processes() -> None:
    (claim,) = semoe.CLAIMS
    assert claim.work == f"{semoe.PROCESSES} processes, {semoe.TENSORS} tensors"
