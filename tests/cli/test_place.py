"""`trace`, `place` and `simulate`: from a stock mixture to a placed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intarsia.placement import Placement, Trace

from ..language_models import plain_text
from .conftest import Intarsia


def test_a_mixture_is_traced_placed_and_simulated(
    intarsia: Intarsia, mixture: Path, tmp_path: Path
) -> None:
    text, trace, placed = tmp_path / "a.txt", tmp_path / "t.safetensors", tmp_path / "p.json"
    text.write_text(plain_text())
    limits = ("--rows", "12", "--length", "16")
    result = intarsia("trace", mixture, text, *limits, "--out", trace, "--json")
    assert result.code == 0, result.err
    assert result.json["tokens"] == 192 and len(result.json["layer"]) == 2
    assert len(Trace.load_file(trace)) == 192
    out = ("--checkpoint", mixture, "--write", tmp_path / "new", "--sglang", tmp_path / "s.json")
    result = intarsia("place", trace, "--devices", 4, "--out", placed, *out, "--json")
    assert result.code == 0, result.err
    quality = result.json["quality"]
    assert quality["moetuner"]["train"]["imbalance"] < quality["contiguous"]["train"]["imbalance"]
    order = Placement.load_file(placed).relabelling()
    places = json.loads((tmp_path / "s.json").read_text())["physical_to_logical_map"]
    assert places == order.tolist()
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (mixture, tmp_path / "new")
    )
    gates = [m.model.layers[1].mlp.gate.weight for m in (old, new)]
    assert torch.equal(gates[1], gates[0][order[1]])
    topology, line = tmp_path / "a.json", tmp_path / "line.json"
    topology.write_text('{"nodes": 2, "each": 2, "intra": {"gbps": 300}, "inter": {"gbps": 25}}')
    for plan in ("ep", "stay"):
        options = ("--plan", plan, "--placement", placed, "--backward", "--out", line, "--json")
        result = intarsia("simulate", trace, "--topology", topology, *options)
        assert result.code == 0, result.err
        assert result.json["seconds"] > 0 and json.loads(line.read_text())["traceEvents"]
    for policy in ("belady", "lru"):
        options = ("--slots", 4, "--policy", policy, "--streams", 2, "--json")
        result = intarsia("simulate", trace, "--topology", topology, *options)
        assert 0 <= result.json["hit_rate"] < 1 and result.json["floor_seconds"] > 0
    result = intarsia("offload", mixture, "--out", tmp_path / "store")
    assert result.code == 0 and "16 experts" in result.out, result.err
    for method in ("eplb", "joint_swaps-home", "exflow"):
        options = ("--redundant", 4) if method == "eplb" else ()
        result = intarsia("place", trace, "--devices", 4, "--by", method, *options, "--out", placed)
        assert result.code == 0 and method in result.out, result.err
    page = tmp_path / "page.html"
    options = ("--devices", 4, "--placement", placed, "--out", page)
    result = intarsia("simulate", trace, *options)
    assert result.code == 0 and str(page) in result.out, result.err
    text = page.read_text()
    (verdict,) = [line for line in result.out.splitlines() if line.startswith("The placement ")]
    assert f"{verdict}</p>" in text.replace("\N{NO-BREAK SPACE}", " ")  # the page says the same
    for figure in ("before", "after", "loads-2", "hits", "timeline"):
        assert f'id="plot-{figure}"' in text


def test_a_plan_is_compared_with_experts_in_order_on_the_same_batch(
    intarsia: Intarsia, tmp_path: Path
) -> None:
    """Plans are timed on the last of several batches, which is not routed as the first one is."""
    pairs = torch.zeros(64, 1, 1, dtype=torch.long)
    pairs[32:, 0, 0] = torch.arange(32) % 4  # the first batch has one expert, the second all four
    trace = tmp_path / "t.safetensors"
    Trace(pairs, 4, torch.zeros(64), torch.arange(64), about={"width": "8", "hidden": "16"}).save(
        trace
    )
    options = ("--devices", 2, "--plan", "auto", "--tokens", 32, "--json")
    result = intarsia("simulate", trace, *options)
    assert result.code == 0, result.err
    assert result.json["plans"]["ep"] == pytest.approx(result.json["in_order"]["seconds"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trace", "m", "nothing.txt", "--out", "t"), "Check the path"),
        (("trace", "m", "elpv", "--out", "t"), "a corpus"),
        (("trace", "m", "austen"), "--out t.safetensors"),
        (("place", "t"), "--out p.json"),
        (("place", "t", "--by", "moe-tuner", "--out", "p"), "Did you mean moetuner"),
        (("place", "t", "--redundant", "2", "--out", "p"), "--by eplb"),
        (("place", "t", "--write", "p", "--out", "p"), "--checkpoint"),
        (("place", "t", "--devices", "2", "--out", "p"), "intarsia trace"),
        (("simulate", "t", "--plan", "tp"), "UnknownChoice: --plan"),
        (("simulate", "t", "--tokens", "0"), "at least 1"),
        (("simulate", "t", "--slots", "1"), "2 or more"),
        (("simulate", "t", "--policy", "fifo"), "UnknownChoice: --policy"),
        (("offload", "nothing", "--out", "out"), "nothing there"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = intarsia(*words)
    assert result.code == 2 and message in result.words
