"""Pruning block by block gives what pruning with whole forwards gives; refusals; resume."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_models import bert, hf_vit, llama, mobile, padded, pictures, rows, vit
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import intarsia
from intarsia.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ShapeError,
    TargetError,
    TrainingError,
)
from intarsia.sparse.prune.matrices import Matrix, seeing
from intarsia.sparse.prune.pruner import Pruner, sparsify_report, stops_of
from intarsia.sparse.prune.rows import batched
from intarsia.sparse.prune.walk import Chain, Whole, flow_of, in_order, inputs_of, mask_of, rowwise

MODELS: dict[str, tuple[Callable[[], nn.Module], list[Any], type]] = {
    "llama": (llama, padded(), Chain),
    "bert": (bert, padded(), Chain),
    "transformers' ViT": (hf_vit, pictures(), Chain),
    "timm's ViT": (vit, pictures(), Chain),
    "a CNN": (mobile, pictures(), Whole),
}


def naive(model: nn.Module, method: Pruner, batches: list[Any], seed: int = 0) -> None:
    """Whole forwards of the model as it is by then, once for each block."""
    for stop in stops_of(model, method.layers):
        with seeing(stop.layers, method.needs) as statistics, torch.no_grad():
            for batch in batches:
                statistics.mask = mask_of(batch)
                inputs = inputs_of(batch)
                model(**inputs) if isinstance(inputs, dict) else model(inputs)
        for name, layer in stop.layers.items():
            _, new = method.edit(name, layer.read(), statistics.found[name], torch.Generator())
            layer.write(new)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", [intarsia.Wanda(0.5), intarsia.SparseGPT(0.4)], ids=["w", "s"])
def test_the_walk_is_what_whole_forwards_give(kind: str, method: Pruner) -> None:
    make, batches, flow = MODELS[kind]
    walked, want = make(), make()
    stops = stops_of(walked, ())
    with torch.no_grad():
        assert type(flow_of(walked, stops, batches)) is flow
    done = sparsify_report(intarsia.sparsify(walked, method, batches))
    naive(want, method, batches)
    state = want.state_dict()
    for name, tensor in walked.state_dict().items():
        assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)
    assert done.density == pytest.approx(method.density, abs=0.02)
    assert len(done.table) == sum(len(stop.layers) for stop in stops)
    assert done.bytes["bitmask"] < done.bytes["dense"]


def test_by_layer_each_sees_those_that_were_pruned_before_it() -> None:
    walked, want = llama(2), llama(2)
    method = intarsia.SparseGPT(0.5)
    intarsia.sparsify(walked, method, padded(), sequential="layer")
    for stop in stops_of(want, ()):
        for name in stop.layers:
            naive(want, method.on([name]), padded())
    state = want.state_dict()
    for name, tensor in walked.state_dict().items():
        assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)
    by_block = llama(2)
    intarsia.sparsify(by_block, method, padded())
    differ = [n for n, t in by_block.state_dict().items() if not torch.equal(t, state[n])]
    assert any("o_proj" in n for n in differ) and any("down_proj" in n for n in differ)


@pytest.mark.parametrize("kind", ["a CNN", "timm's ViT"])
def test_by_layer_goes_through_any_model(kind: str) -> None:
    make, batches, _ = MODELS[kind]
    walked = make()
    stop = stops_of(walked, ())[0]
    with torch.no_grad():
        groups = in_order(stop.layers, lambda: [walked(inputs_of(b)) for b in batches])
    assert [n for group in groups for n in group] == list(stop.layers)
    done = sparsify_report(
        intarsia.sparsify(walked, intarsia.Wanda(0.5), batches, sequential="layer")
    )
    assert done.density == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ConfigError, match="sequential: got"):
        intarsia.sparsify(walked, intarsia.Wanda(0.5), batches, sequential="row")


def test_layers_that_are_not_called_come_last() -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("idle", "second", "first")})
    layers = {name: Matrix(layer) for name, layer in net.items()}
    groups = in_order(layers, lambda: net["second"](net["first"](torch.ones(1, 2))))
    assert [[*group] for group in groups] == [["first"], ["second"], ["idle"]]


def test_what_is_not_in_a_block_stays_dense() -> None:
    model = llama()
    before = model.state_dict()["model.embed_tokens.weight"].clone()
    intarsia.sparsify(model, intarsia.Wanda(0.5), rows(), layers=["mlp.*"])
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], before)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied
    assert state["model.layers.0.self_attn.q_proj.weight"].count_nonzero() == 32 * 32
    assert state["model.layers.0.mlp.up_proj.weight"].count_nonzero() == 32 * 48 // 2


def test_two_of_four_and_errors_of_each_layer() -> None:
    model = llama()
    done = sparsify_report(intarsia.sparsify(model, intarsia.SparseGPT(0.5, pattern="2:4"), rows()))
    for stop in stops_of(model, ()):
        for layer in stop.layers.values():
            groups = (layer.read() != 0).view(-1, 4).sum(1)
            assert int(groups.max()) == 2
    assert all(row["error"] < row["error_masked"] for row in done.table)
    assert "density 0.500" in str(done)


def test_rows_become_batches() -> None:
    batches = batched([*rows(10), *rows(3, 40)], size=8)
    shapes = [tuple(b["input_ids"].shape) for b in batches]
    assert shapes == [(8, 32), (2, 32), (3, 40)] and "labels" not in batches[0]
    assert [len(b) for b in batched(torch.zeros(10, 3, 4, 4), size=8)] == [8, 2]
    assert batched(pictures())[0].shape == (6, 3, 32, 32)


def test_rows_of_batches_come_one_by_one() -> None:
    ids, mask = torch.arange(12).view(3, 4), torch.ones(3, 4)
    named = [*rowwise([{"input_ids": ids, "attention_mask": mask, "labels": ids}])]
    assert [row["input_ids"].tolist() for row in named] == ids[:, None].tolist()
    assert all(row["attention_mask"].shape == (1, 4) and "labels" not in row for row in named)
    assert [row.tolist() for row in rowwise([(ids, mask), ids[:1]])] == [
        *ids[:, None].tolist(), [[0, 1, 2, 3]],
    ]  # fmt: skip


def test_a_data_loader_gives_batches() -> None:
    models = [llama(1), llama(1)]
    loader = DataLoader([{"input_ids": row["input_ids"]} for row in rows(10)], batch_size=5)
    intarsia.sparsify(models[0], intarsia.Wanda(0.5), loader)
    intarsia.sparsify(models[1], intarsia.Wanda(0.5), list(loader))
    state, two = (model.state_dict() for model in models)
    assert all(torch.equal(t, two[n]) for n, t in state.items())
    pairs = batched(DataLoader(TensorDataset(torch.zeros(6, 3, 8, 8), torch.zeros(6)), 4))
    assert [tuple(x.shape) for x in pairs] == [(4, 3, 8, 8), (2, 3, 8, 8)]


def test_what_is_no_calibration_is_refused() -> None:
    wrong: list[tuple[Any, str]] = [
        (["a text", "another"], "got a str, want rows of tokens.*load_calibration"),
        ([{"input_ids": [1, 2, 3]}] * 8, "got 'input_ids', a list"),
        ("austen", "got a str, want rows or batches"),
        (None, "got a NoneType, want rows or batches"),
        ({"input_ids": torch.ones(8, 32).long()}, r"got a dict.*\[batch\]"),
    ]
    for calib, says in wrong:
        refused(DataError, says, model=llama(1), calib=calib)
    refused(DataError, "got 0 rows", model=vit(), calib=torch.zeros(0, 3, 32, 32))
    with pytest.raises(DataError, match="got a str"):
        intarsia.apply(llama(1), intarsia.Wanda(0.5), ["a text"])


def test_the_line_of_a_block() -> None:
    lines: list[str] = []
    intarsia.sparsify(llama(), intarsia.Wanda(0.5), rows(), progress=lines.append)
    assert len(lines) == 3
    assert lines[1].startswith("block 2/3  model.layers.1  density 0.500  error 0.")
    assert " s  left 0:" in lines[1]


class Dead(nn.Module):
    """An expert that no row reaches."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.expert = inner, nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_layer_that_no_row_reaches_stays_dense_and_is_told() -> None:
    model = llama()
    model.model.layers[1].mlp = Dead(model.model.layers[1].mlp)
    lines: list[str] = []
    done = sparsify_report(
        intarsia.sparsify(model, intarsia.Wanda(0.5), rows(), progress=lines.append)
    )
    notes = {row["layer"]: row["told"] for row in done.table if "told" in row}
    assert notes == {"model.layers.1.mlp.expert": "no calibration row reached it; it stays dense"}
    assert "mlp.expert: no calibration row" in lines[1] and "mlp.expert" in str(done)
    assert bool((model.model.layers[1].mlp.expert.weight != 0).all())


def refused(error: type[Exception], match: str, method: Any = None, **settings: Any) -> None:
    model = settings.pop("model", None) or llama()
    calib = settings.pop("calib", rows())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(error, match=match):
        intarsia.sparsify(model, method or intarsia.Wanda(0.5), calib, **settings)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_what_cannot_be_pruned_is_refused_and_the_model_is_as_it_was() -> None:
    for density in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="density: got"):
            intarsia.Wanda(density)
    with pytest.raises(ConfigError, match="'2:4' with density 0.4, want density 0.5"):
        intarsia.Wanda(0.4, "2:4")
    with pytest.raises(ConfigError, match="got '2/4', want 'n:m'"):
        intarsia.Wanda(0.5, "2/4")
    refused(ShapeError, "inputs of 'model.layers.0.* got 32, want a multiple of 5",
            intarsia.sparse.Magnitude(0.2, "1:5"))  # fmt: skip
    refused(DataError, "7 rows of 32 tokens", calib=rows(7))
    refused(DataError, "8 rows of 31 tokens", calib=rows(8, 31))
    refused(DataError, "0 rows", calib=[])
    refused(TargetError, "'lm_head', outside the blocks", layers=["lm_h*"])
    refused(TargetError, "no layer of that name", layers=["mpl.*"])
    refused(TargetError, "with adapters.*Fold", model=intarsia.adapt(llama(), intarsia.Lora(2)))
    refused(TargetError, "layers of Sequential: got none", model=nn.Sequential(nn.ReLU()))
    refused(ConfigError, "want Magnitude, Wanda", method=intarsia.Wanda)
    refused(ConfigError, "want Magnitude, Wanda", method="upcycle")
    refused(ConfigError, "resume: got no folder", resume=True)


def test_moments_that_are_not_finite_are_refused_by_their_layer() -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    match = r"'model.layers.1.mlp.down_proj': got \d+ columns not finite"
    refused(DataError, match, intarsia.SparseGPT(0.5), model=model)


def test_a_model_without_known_blocks_is_pruned_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    x = torch.randn(32, 8)
    # by hand: each layer by the inputs that it has behind the pruned ones before it
    want = copy.deepcopy(model)
    for place in (0, 2):
        statistics = intarsia.scores.Statistics.of(want[:place](x))
        method, layer = intarsia.Wanda(0.5), want[place]
        layer.weight.data = method.edit("", layer.weight.data, statistics, torch.Generator())[1]
    intarsia.sparsify(model, "wanda", x)
    assert all(torch.equal(t, want.state_dict()[n]) for n, t in model.state_dict().items())
    assert sparsify_report(model).density == 0.5
    # a layer by its name
    again = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    intarsia.sparsify(again, intarsia.sparse.Magnitude(0.5), layers=["2"])
    assert bool((again[0].weight != 0).all()) and int((again[2].weight == 0).sum()) == 24


def test_magnitude_needs_no_rows() -> None:
    model = llama()
    done = sparsify_report(intarsia.sparsify(model, intarsia.sparse.Magnitude(0.25)))
    assert done.density == 0.25
    # a name stands for the default settings
    assert sparsify_report(intarsia.sparsify(llama(), "magnitude")).density == 0.5


def test_a_pruned_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = intarsia.apply(llama(), intarsia.sparse.DSnoT(intarsia.Wanda(0.5)), batched(rows()))
    intarsia.save(model, tmp_path / "saved")
    again = intarsia.load(llama(), tmp_path / "saved")
    state = model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in again.state_dict().items())


# resume


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


class Stop(Exception):
    pass


def stopped(out: Path, after: int, method: Pruner) -> None:
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == after:
            raise Stop

    with pytest.raises(Stop):
        intarsia.sparsify(llama(), method, rows(), out=out, progress=report)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_walk_goes_on_with_the_same_bits(after: int, tmp_path: Path) -> None:
    method = intarsia.sparse.DSnoT(intarsia.SparseGPT(0.4))
    unstopped, again = llama(), llama()
    intarsia.sparsify(unstopped, method, rows())
    stopped(tmp_path, after, method)
    lines: list[str] = []
    intarsia.sparsify(again, method, rows(), out=tmp_path, resume=True, progress=lines.append)
    done = sparsify_report(again)
    assert len(lines) == 3 - after and len(done.table) == 3 * 7
    want = weights(unstopped)
    assert all(torch.equal(t, want[n]) for n, t in weights(again).items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "block-000.safetensors", "block-001.safetensors", "block-002.safetensors",
        "hidden-002.safetensors", "walk.json",
    ]  # fmt: skip


def test_a_folder_of_another_walk_or_with_damage_is_refused(tmp_path: Path) -> None:
    method = intarsia.Wanda(0.5)
    stopped(tmp_path, 2, method)
    settings: dict[str, Any] = {"out": tmp_path}
    refused(ConfigError, "a folder with a run in it", method, **settings)
    settings["resume"] = True
    refused(CheckpointError, "another run, settings.density", intarsia.Wanda(0.4), **settings)
    refused(CheckpointError, "another run, seed", method, seed=1, **settings)
    refused(CheckpointError, "another run, calibration", method, calib=rows()[::-1], **settings)
    block = tmp_path / "block-001.safetensors"
    raw = block.read_bytes()
    block.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused(CheckpointError, "block-001.*other bytes than were written", method, **settings)
    block.unlink()
    refused(CheckpointError, "block-001.*FileNotFound", method, **settings)
    block.write_bytes(raw)
    hidden = tmp_path / "hidden-001.safetensors"
    hidden.write_bytes(hidden.read_bytes()[:50])
    refused(CheckpointError, "hidden-001", method, **settings)
    (tmp_path / "walk.json").write_text("{")
    refused(CheckpointError, "walk.json.*no record of a run", method, **settings)


def test_a_full_disk_leaves_the_walk_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intarsia.sparse.prune import progress

    method, calls = intarsia.Wanda(0.5), list[int]()
    save = progress.save_file

    def full(tensors: Any, path: Any) -> None:
        calls.append(1)
        if len(calls) == 6:  # the hidden states of the second block
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(progress, "save_file", full)
    refused(TrainingError, "hidden-001.*No space left", method, out=tmp_path)
    assert len(json.loads((tmp_path / "walk.json").read_text())["blocks"]) == 1
    unstopped, again = llama(), llama()
    intarsia.sparsify(unstopped, method, rows())
    intarsia.sparsify(again, method, rows(), out=tmp_path, resume=True)
    want = weights(unstopped)
    assert all(torch.equal(t, want[n]) for n, t in weights(again).items())


@pytest.mark.skipif(sys.platform != "linux", reason="forks children to kill")
def test_killed_anywhere_it_ends_in_the_same_bits(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    code, out, err = forked(Path(__file__).with_name("prune_killed.py"), tmp_path).wait()
    assert code == 0, err
    assert out.split() == ["killed,same"] * 4, out
