"""The recurrent router: its equation, its limits, one cell for all, and the hosts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating import join, start
from intarsia.routers import Recurrent
from intarsia.routers.recurrent import RecurrentRouter

from ..refusals import refused

WIDTH = 5


def stack(layers: int = 3, **settings: Any) -> nn.ModuleList:
    config = Recurrent(**({"experts": 4, "active": 2, "hidden": 3, "std": 1.0} | settings))
    draw = torch.Generator().manual_seed(0)
    model = nn.ModuleList(config.build(WIDTH, generator=draw).double() for _ in range(layers))
    join(model)
    return model


def inputs(count: int = 6, layers: int = 3, seed: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(count, WIDTH, generator=draw, dtype=torch.float64) for _ in range(layers)]


def run(model: nn.ModuleList, xs: list[Tensor]) -> list[Tensor]:
    start(model)
    return [router(x).dense() for router, x in zip(model, xs, strict=True)]


def router(model: nn.ModuleList, layer: int) -> RecurrentRouter:
    gate = model[layer]
    assert isinstance(gate, RecurrentRouter)
    return gate


def test_it_is_the_gru_over_depth_token_by_token() -> None:
    model, xs = stack(), inputs()
    cell = router(model, 0).cell
    nn.init.normal_(cell.bias_hh, generator=torch.Generator().manual_seed(3))
    got = run(model, xs)
    for t in range(6):
        h = torch.zeros(1, 3, dtype=torch.float64)
        for layer, x in enumerate(xs):
            gate = router(model, layer)
            h = cell(x[t : t + 1] @ gate.down.T, h)
            p = (h @ gate.weight.T).softmax(-1)[0]
            best = p.topk(2)
            want = torch.zeros(4, dtype=torch.float64)
            want[best.indices] = best.values / best.values.sum()
            assert_close(got[layer][t], want)
            state = gate.last.state if gate.last is not None else None
            assert state is not None
            assert_close(state[t : t + 1], h)


@pytest.mark.parametrize("width", [64, 1024])
def test_w1_keeps_the_size_of_what_it_reads(width: int) -> None:
    """Entries of variance 1 / d: W1 x is as large as x, whatever the std of W2."""
    gate = Recurrent(hidden=128, std=0.02).build(width, generator=torch.Generator().manual_seed(0))
    assert float(gate.down.detach().std()) == pytest.approx(width**-0.5, rel=0.05)
    assert float(gate.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_the_gru_starts_on_both_sides_of_0_and_without_biases() -> None:
    cell = Recurrent(hidden=64).build(8, generator=torch.Generator().manual_seed(0)).cell
    for weight in (cell.weight_ih, cell.weight_hh):
        low, high = weight.detach().aminmax()
        assert float(low) == pytest.approx(-1 / 8, rel=0.05)
        assert float(high) == pytest.approx(1 / 8, rel=0.05)
    assert not cell.bias_ih.any() and not cell.bias_hh.any()


def test_one_cell_serves_all_layers_and_is_counted_once() -> None:
    model = stack()
    names = [name for name, _ in model.named_parameters()]
    assert sum("cell" in name for name in names) == 4 and all(
        name.startswith("0.") for name in names if "cell" in name
    )
    run(model, inputs())[2].square().sum().backward()
    assert all(p.grad is not None for p in router(model, 0).cell.parameters())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        router(copied, 0).cell.bias_ih.add_(1.0)
    xs = inputs()
    assert not torch.equal(run(copied, xs)[2], run(model, xs)[2])  # the copy follows its own cell
    twin = stack()
    twin.load_state_dict(model.state_dict())
    assert_close(run(twin, xs), run(model, xs))


def test_a_closed_gate_keeps_the_first_state_and_an_open_one_forgets_depth() -> None:
    model, xs = stack(), inputs()
    cell = router(model, 0).cell
    with torch.no_grad():
        cell.bias_ih[3:6] = 100.0  # z = 1: h = h_0 = 0 in all layers
    for gates in run(model, xs):
        assert_close(gates, gates[:1].expand_as(gates))
    with torch.no_grad():
        cell.bias_ih[3:6] = -100.0  # z = 0
        cell.bias_ih[:3] = -100.0  # r = 0
    last = run(model, xs)[2]
    changed = inputs(seed=9)[:2] + xs[2:]
    assert_close(run(model, changed)[2], last)  # the layers before do not matter
    routed = router(model, 2)
    h = torch.tanh(xs[2] @ routed.down.T @ cell.weight_ih[6:].T + cell.bias_ih[6:])
    want = (h @ routed.weight.T).softmax(-1)
    assert_close(last, torch.where(last > 0, want, 0.0) / (want * (last > 0)).sum(-1, True))


def test_without_carrying_each_layer_is_a_first_one() -> None:
    model, xs = stack(carry=False), inputs()
    for layer, gates in enumerate(run(model, xs)):
        gate = router(model, layer)
        h = gate.recur(xs[layer] @ gate.down.T, torch.zeros(6, 3, dtype=torch.float64))
        want = (h @ gate.weight.T).softmax(-1)
        assert_close(gates, torch.where(gates > 0, want, 0.0) / (want * (gates > 0)).sum(-1, True))
    carrying = stack()
    assert_close(run(carrying, xs)[0], run(model, xs)[0])
    assert not torch.equal(run(carrying, xs)[2], run(model, xs)[2])


def test_the_thread_is_the_only_way_from_one_layer_to_another() -> None:
    model, xs = stack(), [x.requires_grad_() for x in inputs()]
    run(model, xs)[2].square().sum().backward()
    assert xs[0].grad is not None and bool(xs[0].grad.any())
    for x in xs:
        x.grad = None
    start(model)
    for layer in range(3):
        if layer:
            state = router(model, 0).thread.left(layer - 1)
            assert state is not None
            router(model, 0).thread.leave(layer - 1, state.detach())
        gates = model[layer](xs[layer]).dense()
    gates.square().sum().backward()
    assert xs[0].grad is None and xs[2].grad is not None


def test_rows_in_another_order_give_the_same_and_padding_changes_nothing() -> None:
    model, xs = stack(), inputs()
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    want = run(model, xs)
    for got, plain in zip(run(model, [x[order] for x in xs]), want, strict=True):
        assert_close(got, plain[order])
    valid = torch.tensor([[True, False, True, True, False, True]])
    for layer in range(3):
        router(model, layer).context.valid = valid
    for got, plain in zip(run(model, xs), want, strict=True):
        assert not got[~valid[0]].any()
        assert_close(got[valid[0]], plain[valid[0]])


def test_half_precision_and_autocast_keep_the_state_in_single() -> None:
    model, xs = stack().to(torch.bfloat16), [x.bfloat16() for x in inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        run(model, xs)
    last = router(model, 2).last
    assert last is not None and last.state is not None
    assert last.state.dtype == torch.float32 and last.weight.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_a_host_joins_starts_restores_and_checkpoints() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from intarsia.folders.verbs import upcycle

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    model: Any = upcycle(copy.deepcopy(base), Recurrent(4, 2, 8, std=1.0), how="diversified")
    routers = [m for m in model.modules() if isinstance(m, RecurrentRouter)]
    assert [r.layer for r in routers] == [0, 1, 2]
    assert routers[0].thread is routers[2].thread
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits
        # a token's state is its own: other rows, and the rows one by one
        assert_close(model(input_ids=ids[:1]).logits, want[:1], atol=1e-5, rtol=1e-4)
        again: Any = upcycle(copy.deepcopy(base), Recurrent(4, 2, 8), seed=5)
        again.load_state_dict(model.state_dict())
        assert_close(again.eval()(input_ids=ids).logits, want)
    outputs = []
    for recompute in (False, True):
        model.zero_grad()
        model.train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids).logits.square().mean().backward()
        outputs.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert any("router.cell.weight_hh" in n and bool(g.any()) for n, g in outputs[0].items())
    assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"hidden": 0}, "hidden"),
        ({"active": 9}, "active"),
        ({"active": 1}, "active"),
        ({"balance": -1.0}, "balance"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Recurrent(**settings)
