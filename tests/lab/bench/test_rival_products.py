"""Products of other libraries beside ours: the same values, and a reason for who is left out."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pytest
import torch

from intarsia.kernels.native.floor import Floor
from intarsia_lab.bench import rival_products
from intarsia_lab.bench.rival_products import RIVALS, RivalProducts
from intarsia_lab.bench.sparse import OURS, PEER, TORCH, ShapeTable, Timed, ours, verdict

SHAPE = (64, 128)
BOUNDS = {"int8": 0.03, "Q8_0": 0.03, "int4": 0.2, "Q4_0": 0.2}  # of the largest output


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator) / math.sqrt(SHAPE[1])
    return weight, torch.randn(1, SHAPE[1], generator=generator)


def test_other_libraries_compute_the_same_product_or_say_why_not() -> None:
    weight, x = drawn()
    want, left_out = x @ weight.T, dict[str, str]()
    products = dict(rival_products.rival_products(weight, x, 3, left_out))
    assert (
        products.keys() | left_out.keys() == set(RIVALS) and not products.keys() & left_out.keys()
    )
    assert all(reason.startswith(("ImportError", "ModuleNotFound")) for reason in left_out.values())
    for name, product in products.items():
        off = (product.output.float() - want).abs().max() / want.abs().max()
        assert off < BOUNDS[name.split()[-1]], name
        per_weight = product.bytes / weight.numel()
        assert (0.5 < per_weight < 0.7) if "4" in name.split()[-1] else (1 <= per_weight < 1.2)
        for call in product.calls:
            call()


@pytest.mark.thorough
def test_ctrl_c_is_handled_after_two_models_of_openvino() -> None:
    pytest.importorskip("openvino", reason="pip install openvino")
    # the signal would end this process, too
    program = """
    import gc, signal, torch
    from intarsia_lab.bench.rival_products import openvino_products
    for bits in (8, 4):
        openvino_products(bits, torch.ones(64, 128), torch.ones(1, 128), 1)
    gc.collect()
    signal.signal(signal.SIGINT, lambda *_: print("handled"))
    signal.raise_signal(signal.SIGINT)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout) == (0, "handled\n"), process.stderr


def test_a_library_that_fails_is_left_out_with_its_first_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> RivalProducts:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(rival_products, "RIVALS", {"other int4": broken})
    left_out: dict[str, str] = {}
    assert not list(rival_products.rival_products(*drawn(), 1, left_out))
    assert left_out == {"other int4": "RuntimeError: no such kernel"}


def test_a_sparse_product_is_judged_by_the_fastest_dense_one_of_any_library() -> None:
    rows = tuple(
        Timed(SHAPE, density, name, kind, ms, 1, 0.0)
        for density, name, kind, ms in (
            (1.0, "torch bf16", TORCH, 4.0),
            (1.0, "other int4", PEER, 1.0),
            (0.5, "bitmask int8", OURS, 2.0),
        )
    )
    table = ShapeTable(rows, Floor(1e9, {}, 1), "portable")
    assert verdict(table, SHAPE).startswith("dense is faster: other int4, 2.00x")


def test_patterns_of_several_rows_keep_as_many_groups() -> None:
    weight, x = drawn()
    keep = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5
    contenders = {c.name: c for c in ours(weight, keep, x, 2, 0.5)}
    alone = contenders["group-sparse int4"]
    for rows in (4, 8):
        shared = contenders[f"group-sparse int4, {rows} rows"]
        assert shared.bytes < 1.2 * alone.bytes and shared.copies == len(shared.calls) == 2
        assert shared.error < 0.2
