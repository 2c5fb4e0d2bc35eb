"""`trace`, `place` and `simulate`: from a stock mixture to a placed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intarsia.placement import Placement, Trace

from .conftest import Intarsia


def test_a_mixture_is_traced_placed_and_simulated(
    intarsia: Intarsia, mixture: Path, tmp_path: Path
) -> None:
    text, trace, placed = tmp_path / "a.txt", tmp_path / "t.safetensors", tmp_path / "p.json"
    text.write_text("".join(f"Line {i} of a plain text, which says {i * i}.\n" for i in range(80)))
    given = ("--rows", "12", "--length", "16")
    said = intarsia("trace", mixture, text, *given, "--out", trace, "--json")
    assert said.code == 0, said.err
    assert said.json["tokens"] == 192 and len(said.json["layer"]) == 2
    assert len(Trace.load_file(trace)) == 192
    out = ("--checkpoint", mixture, "--write", tmp_path / "new", "--sglang", tmp_path / "s.json")
    said = intarsia("place", trace, "--devices", 4, "--out", placed, *out, "--json")
    assert said.code == 0, said.err
    quality = said.json["quality"]
    assert quality["moetuner"]["train"]["imbalance"] < quality["contiguous"]["train"]["imbalance"]
    order = Placement.load_file(placed).relabelling()
    places = json.loads((tmp_path / "s.json").read_text())["physical_to_logical_map"]
    assert places == order.tolist()
    old, new = (AutoModelForCausalLM.from_pretrained(at) for at in (mixture, tmp_path / "new"))
    gates = [m.model.layers[1].mlp.gate.weight for m in (old, new)]
    assert torch.equal(gates[1], gates[0][order[1]])
    topology, line = tmp_path / "a.json", tmp_path / "line.json"
    topology.write_text('{"nodes": 2, "each": 2, "intra": {"gbps": 300}, "inter": {"gbps": 25}}')
    for plan in ("ep", "stay"):
        more = ("--plan", plan, "--placement", placed, "--backward", "--out", line, "--json")
        said = intarsia("simulate", trace, "--topology", topology, *more)
        assert said.code == 0, said.err
        assert said.json["seconds"] > 0 and json.loads(line.read_text())["traceEvents"]
    for policy in ("belady", "lru"):
        more = ("--slots", 4, "--policy", policy, "--streams", 2, "--json")
        said = intarsia("simulate", trace, "--topology", topology, *more)
        assert 0 <= said.json["hit_rate"] < 1 and said.json["floor_seconds"] > 0
    said = intarsia("offload", mixture, "--out", tmp_path / "store")
    assert said.code == 0 and "16 experts" in said.out, said.err
    for by in ("eplb", "joint_swaps-home", "exflow"):
        more = ("--redundant", 4) if by == "eplb" else ()
        said = intarsia("place", trace, "--devices", 4, "--by", by, *more, "--out", placed)
        assert said.code == 0 and by in said.out, said.err
    page = tmp_path / "page.html"
    more = ("--devices", 4, "--placement", placed, "--out", page)
    said = intarsia("simulate", trace, *more)
    assert said.code == 0 and str(page) in said.out, said.err
    text = page.read_text()
    for figure in ("before", "after", "loads-2", "hits", "timeline"):
        assert f'id="plot-{figure}"' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trace", "m", "nothing.txt", "--out", "t"), "Check the path"),
        (("trace", "m", "elpv", "--out", "t"), "a corpus"),
        (("trace", "m", "austen"), "--out t.safetensors"),
        (("place", "t"), "--out p.json"),
        (("place", "t", "--by", "moe-tuner", "--out", "p"), "Did you mean moetuner"),
        (("place", "t", "--redundant", "2", "--out", "p"), "--by eplb"),
        (("place", "t", "--write", "p", "--out", "p"), "--checkpoint"),
        (("place", "t", "--devices", "2", "--out", "p"), "intarsia trace"),
        (("simulate", "t", "--plan", "tp"), "unknown --plan"),
        (("simulate", "t", "--tokens", "0"), "at least 1"),
        (("simulate", "t", "--slots", "1"), "2 or more"),
        (("simulate", "t", "--policy", "fifo"), "unknown --policy"),
        (("offload", "nothing", "--out", "out"), "nothing there"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = intarsia(*words)
    assert found.code == 2 and said in found.words
