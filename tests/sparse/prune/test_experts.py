"""Experts, kernels and heads are pruned by what each has seen; a walk on disk holds one copy."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_models import llama, padded, pictures, rows, seeded, timm_model
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.mixtures.capacity import keep_pairs
from intarsia.scores.statistics import _patches
from intarsia.sparse.prune.matrices import _hidden, seeing
from intarsia.sparse.prune.pruner import sparsify_report, stops_of
from intarsia.sparse.prune.walk import Stop


def mixture() -> Any:
    model: Any = intarsia.upcycle(llama(2), intarsia.TopK(experts=4, active=2), how="diversified")
    return model.eval()


def fused(kind: str) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 64, "head_dim": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def experts_of(model: nn.Module) -> tuple[Any, Stop]:
    stop = stops_of(model, ())[0]
    return next(m.owner for m in stop.layers.values() if m.index is not None), stop


@pytest.mark.parametrize("kind", ["mixture", "Mixtral", "GptOss"])
def test_an_expert_is_pruned_by_the_tokens_routed_to_it(kind: str) -> None:
    model = mixture() if kind == "mixture" else fused(kind)
    owner, stop = experts_of(model)
    names = {n for n, m in stop.layers.items() if m.index is not None}
    assert len(names) == 4 * (3 if kind == "mixture" else 2)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    if kind == "mixture":
        plain_mix = owner.mix

        def mix(x: Tensor, routing: Any) -> Tensor:
            pairs.append((x, routing.token, routing.expert))
            return plain_mix(x, routing)

        owner.mix = mix
    else:

        def hook(_: Any, args: Any) -> None:
            x, experts = args[0].reshape(-1, 32), args[1]
            token = torch.arange(len(x)).repeat_interleave(experts.shape[-1])
            pairs.append((x, token, experts.flatten()))

        owner.register_forward_pre_hook(hook)
    batch = padded()[0]
    with torch.no_grad(), seeing(stop.layers, {"square"}) as statistics:
        statistics.mask = batch["attention_mask"].bool()
        model(**batch)
    real = batch["attention_mask"].bool().flatten()
    for name in names:
        m = stop.layers[name]
        squares, count = torch.zeros(m.read().shape[1], dtype=torch.float64), 0
        for x, token, expert in pairs:
            for t, e in zip(token.tolist(), expert.tolist(), strict=True):  # pair by pair
                if e == m.index and real[t]:
                    row = x[t : t + 1].detach()
                    row = row if "down" not in m.name else _hidden(owner, row, e).detach()
                    squares += row[0].double().square()
                    count += 1
        if not count:
            assert name not in statistics.found
            continue
        assert statistics.found[name].count == count
        assert_close(statistics.found[name].mean_square, squares / count, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["mixture", "Mixtral", "GptOss"])
def test_hidden_units_are_what_the_second_matrix_reads(kind: str) -> None:
    owner, stop = experts_of(mixture() if kind == "mixture" else fused(kind))
    down = next(m for m in stop.layers.values() if m.index == 2 and "down" in m.name)
    x = torch.randn(5, 32, generator=seeded())
    experts = torch.full((5,), 2)
    with torch.no_grad():
        got = _hidden(owner, x, 2) @ down.read().T
        if kind == "mixture":
            want = owner(x, experts)
        else:
            want = owner(x, experts[:, None], torch.ones(5, 1))
            if owner.has_bias:
                want = want - owner.down_proj_bias[2]
    assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_mixture_keeps_its_router_and_its_dead_expert() -> None:
    model = mixture()
    block = model.model.layers[0].mlp
    up, routing = block.experts.up.detach().clone(), block.routing

    def without(x: Tensor) -> Any:
        pairs = routing(x)
        return keep_pairs(pairs, pairs.expert != 3)

    block.routing = without
    before = {n: p.detach().clone() for n, p in block.router.named_parameters()}
    done = sparsify_report(intarsia.sparsify(model, intarsia.Wanda(0.5), rows()))
    dead = {row["layer"] for row in done.table if "told" in row}
    assert dead == {f"model.layers.0.mlp.experts.{n}.3" for n in ("up", "gate", "down")}
    assert torch.equal(block.experts.up[3], up[3])
    counts = (block.experts.up[:3] != 0).sum((1, 2)).tolist()
    assert counts == [32 * 48 // 2] * 3
    assert all(torch.equal(p, before[n]) for n, p in block.router.named_parameters())


def test_density_two_of_four_and_magnitude_in_experts_and_an_undo() -> None:
    model = fused("GptOss")  # stored as (in, out)
    intarsia.sparsify(model, intarsia.sparse.Magnitude(0.5, "2:4"))
    for m in experts_of(model)[1].layers.values():
        assert int((m.read() != 0).reshape(-1, 4).sum(1).max()) == 2
    again = fused("GptOss")
    before = {n: t.clone() for n, t in again.state_dict().items()}

    def stop_it(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError):
        intarsia.sparsify(again, intarsia.sparse.Magnitude(0.5), progress=stop_it)
    assert all(torch.equal(t, before[n]) for n, t in again.state_dict().items())


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ({"kernel_size": 3, "padding": 1}, 7),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 8),
        ({"kernel_size": (3, 5), "padding": (1, 2), "dilation": (2, 1)}, 9),
        ({"kernel_size": 3}, 6),
        ({"kernel_size": 3, "padding": "same", "dilation": 2}, 5),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, 6),
        ("same", 9),
    ],
)
def test_patches_are_what_a_kernel_covers(sizes: Any, side: int) -> None:
    from timm.layers.conv2d_same import Conv2dSame

    torch.manual_seed(0)
    conv: Any = (
        Conv2dSame(3, 4, 3, stride=2, bias=False)
        if sizes == "same"
        else nn.Conv2d(3, 4, bias=False, **sizes)
    )
    x = torch.randn(1, 3, side, side + 1)
    with torch.no_grad():
        y = conv(x)
        got = _patches(conv, x, y) @ conv.weight.flatten(1).T
    assert_close(got.T.view_as(y), y, rtol=1e-4, atol=1e-5)


def test_a_network_of_convolutions_is_pruned_by_what_its_kernels_cover() -> None:
    net = timm_model("resnet18", channels=(8, 8, 16, 16))
    lines: list[str] = []
    done = sparsify_report(
        intarsia.sparsify(net, intarsia.Wanda(0.5), pictures(), progress=lines.append)
    )
    assert len(lines) == 8 and done.density == pytest.approx(0.5, abs=0.02)
    state = net.state_dict()
    assert float((state["layer1.0.conv1.weight"] == 0).double().mean()) == 0.5
    assert bool((state["conv1.weight"] != 0).all()) and bool((state["fc.weight"] != 0).all())


def test_a_head_is_pruned_where_it_is_named_in_full() -> None:
    model: Any = llama(2)
    done = sparsify_report(
        intarsia.sparsify(model, intarsia.Wanda(0.5), rows(), layers=["lm_head", "mlp.up_proj"])
    )
    assert [r["layer"] for r in done.table][-1] == "lm_head" and len(done.table) == 3
    assert float((model.lm_head.weight == 0).float().mean()) == 0.5
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied: one matrix
    gpt = timm_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2)
    intarsia.sparsify(gpt, intarsia.SparseGPT(0.5), pictures(), layers=["head"])
    assert int((gpt.get_submodule("head").weight == 0).sum()) == 48  # pyright: ignore


def test_gpt2_is_pruned_along_its_inputs() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64)).eval()
    intarsia.sparsify(model, intarsia.Wanda(0.25), rows())
    weight = model.transformer.h[0].mlp.c_fc.weight  # (in, out)
    assert (weight != 0).sum(0).tolist() == [8] * 128


def live_bytes() -> dict[int, int]:
    """The bytes of each storage that is in memory, by its address."""
    gc.collect()
    plain = (Tensor, nn.Parameter)  # a graph of another test may have left some without numbers
    tensors = [t for t in gc.get_objects() if type(t) in plain and t.device.type == "cpu"]
    return {t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.thorough
def test_a_walk_with_a_folder_holds_no_second_copy(tmp_path: Path) -> None:
    peaks: dict[bool, int] = {}
    for on_disk in (False, True):
        others = live_bytes()  # of other tests, which may go meanwhile
        model, held = llama(4), list[int]()

        def report(_: str, others: dict[int, int] = others, held: list[int] = held) -> None:
            held.append(sum(n for place, n in live_bytes().items() if place not in others))

        report("before")
        out = tmp_path / "walk" if on_disk else None
        intarsia.sparsify(model, intarsia.sparse.Magnitude(0.5), out=out, progress=report)
        peaks[on_disk] = max(held) - held[0]
    blocks = sum(m.stored.nbytes for s in stops_of(llama(4), ()) for m in s.layers.values())
    # a new tensor may stand where another test left one: more than half is seen
    assert 2 * peaks[False] > blocks > 4 * max(1, peaks[True])
    assert not list((tmp_path / "walk").glob("before-*"))


@pytest.mark.slow
def test_a_real_layers_mask_is_that_of_the_published_rule() -> None:
    """Wanda (arXiv:2306.11695), algorithm 1, restated: float64, row by row, a stable sort."""
    from intarsia.data.language_models import language_model

    model: Any = language_model("smollm2", progress=lambda _: None)[0].eval()
    layer = model.model.layers[0].mlp.down_proj
    dense = layer.weight.detach().double().clone()
    batch = torch.randint(49_152, (8, 32), generator=seeded())
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double()))
    with torch.no_grad():
        model.model(batch)
    handle.remove()
    intarsia.sparsify(model, intarsia.Wanda(0.4), [batch], layers=["layers.0.mlp.down_proj"])
    x = inputs[0].reshape(-1, dense.shape[1])
    metric = dense.abs() * x.square().sum(0).sqrt()  # ||x_j||_2 over all tokens
    gone = int(dense.shape[1] * (1 - 0.4))  # as the authors' code counts
    want = torch.ones_like(dense, dtype=torch.bool)
    for i, row in enumerate(metric):
        want[i, row.sort(stable=True).indices[:gone]] = False
    nonzero = layer.weight.detach() != 0
    nonzero |= (dense == 0) & want  # a kept weight that was 0 before cannot be told
    # two scores within float32's rounding may change places
    assert int((nonzero != want).sum()) <= 1e-4 * want.numel()
    assert bool((layer.weight.double()[nonzero] == dense[nonzero]).all())
