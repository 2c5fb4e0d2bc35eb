"""Jobs for four processes: experts of stock models, shared out; each beside one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.distributed.expert_parallel import apply_expert_parallelism

from intarsia.core.errors import ConfigError
from intarsia.folders.saved import load, save
from intarsia.folders.sharded_folder import write_sharded
from intarsia.folders.verbs import apply
from intarsia.hosts.tracing import trace
from intarsia.methods.baselines import FullTuning
from intarsia.mixtures.experts_function import stock_experts
from intarsia.mixtures.fused_experts import FusedExperts
from intarsia.parallel import DeepSpeed, ExpertParallel, Fssdp, Strategy, Tutel
from intarsia.parallel.attached import attached
from intarsia.parallel.expert_parallel import register_exchange
from intarsia.parallel.layout import size_of
from intarsia.parallel.trial import LINKS, as_planned
from intarsia.placement import ExpertSize
from intarsia.processes import Meter, WholeModel
from intarsia.train import checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 6,
    "pad_token_id": None,
}
IDS = torch.randint(31, (6, 5), generator=torch.Generator().manual_seed(0))


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=8))


def mixtral_of_two() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))


def olmoe() -> Any:
    sizes = {n: v for n, v in SIZES.items() if n != "head_dim"}
    return OlmoeForCausalLM(OlmoeConfig(**sizes, num_experts=8, eos_token_id=None))


def qwen() -> Any:
    sizes = {"moe_intermediate_size": 6, "shared_expert_intermediate_size": 6, "num_experts": 8}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes))


def gpt_oss(experts: int = 8) -> Any:
    """Transposed, interleaved, with biases."""
    model = GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=experts))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight)
    return model


KINDS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"mixtral": mixtral, "olmoe": olmoe, "qwen": qwen, "gpt-oss": gpt_oss}
)


OF_TWO: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"mixtral-of-two": mixtral_of_two, "gpt-oss-of-two": partial(gpt_oss, 2)}
)


def built(kind: str) -> Any:
    torch.manual_seed(0)
    model = (KINDS | OF_TWO)[kind]()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    model.set_experts_implementation("eager")  # grouped products know no float64
    return model.double().train()


def loss(model: Any, rows: Tensor) -> Tensor:
    return model(rows).logits.square().mean(2).sum()


def of_stock(kind: str, strategy: Strategy) -> None:
    """Logits, gradients and what an optimiser then makes of them; the bytes of the plan."""
    full, model = built(kind), built(kind)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine, want = IDS[rank::world], full(IDS).logits.detach()
    loss(full, IDS).backward()
    traced, meter = trace(full.eval(), [IDS]), Meter()
    experts = next(iter(stock_experts(full).values()))
    size = replace(size_of(FusedExperts(experts)), weight=weight_bytes(full))
    plan = strategy.plan(traced, size, LINKS, backward=True, past=[traced.load()])
    names = [name for name, _ in model.named_parameters()]
    with attached(model, strategy, topology=LINKS, meter=meter) as parts:
        got = model(mine).logits.detach()
        assert_close(got, want[rank::world], rtol=0, atol=1e-12 * float(want.abs().max()))
        meter.sent.clear()
        loss(model, mine).backward()
        as_planned(meter, plan)
        same_gradients(full, model, parts, world)
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    torch.optim.SGD(full.parameters(), lr=0.5 / world).step()
    assert [name for name, _ in model.named_parameters()] == names
    weights = full.state_dict()
    for name, value in model.state_dict().items():
        if ".experts." in name:
            assert_close(
                value, weights[name], rtol=0, atol=1e-12 * float(weights[name].abs().max())
            )


def with_nothing(strategy: Strategy) -> None:
    """Process 3 has no rows, and the experts of the last processes have none of anybody."""
    stock, model, rank = built("mixtral"), built("mixtral"), dist.get_rank()
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, generator=draws, dtype=torch.float64)
    index, weight = torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]])
    mine = x[rank : rank + 1].requires_grad_()
    inputs = mine, index[: len(mine)], weight[: len(mine)].requires_grad_()
    experts_of_model: Any = stock.model.layers[0].mlp.experts
    want = experts_of_model(x.requires_grad_(), index.expand(3, 2), weight.expand(3, 2))
    want.square().sum().backward()
    with attached(model, strategy, topology=LINKS):
        experts: Any = model.model.layers[0].mlp.experts
        got = experts(*inputs)
        assert_close(got, want[rank : rank + 1], rtol=0, atol=1e-12)
        got.square().sum().backward()
        assert mine.grad is not None and x.grad is not None
        assert_close(mine.grad, x.grad[rank : rank + 1], rtol=0, atol=1e-12)
        local = experts.part.local
        full = experts_of_model.down_proj.grad[experts.part.lot(rank)[0]] / dist.get_world_size()
        assert_close(local.down_proj.grad, full, rtol=0, atol=1e-12)


def same_gradients(stock: Any, model: Any, parts: Any, world: int) -> None:
    """Compare gradients: of experts the mean's, of the rest their sum over processes."""
    parameters = dict(stock.named_parameters())
    state = {n: p.grad for n, p in model.named_parameters()}
    experts = {n: g for n, g in state.items() if n in parts.names}
    assert experts and all(g is not None for g in experts.values())
    grads: dict[str, Tensor] = {}
    for name, grad in experts.items():
        path, part, weight = parts.names[name]
        grads[path] = world * parts.gathered(part, weight, grad)
    for name, p in model.named_parameters():
        if name not in experts:
            grad = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            dist.all_reduce(grad)
            grads[name] = grad
    assert grads.keys() == parameters.keys()
    for name, grad in grads.items():
        full = parameters[name].grad
        assert full is not None
        assert_close(grad, full, rtol=0, atol=1e-12 * max(1.0, float(full.abs().max())), msg=name)


def weight_bytes(model: Any) -> int:
    """Return the bytes of a gate's weight, as this architecture has it."""
    sizes: list[int] = []
    first = next(iter(stock_experts(model).values())).module
    hook = first.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[2].element_size()))
    with torch.no_grad():
        model(IDS[:1])
    hook.remove()
    return sizes[0]


def all_kinds() -> None:
    for kind in KINDS:
        of_stock(kind, ExpertParallel())
    for strategy in (Fssdp(1, 3), Tutel(), DeepSpeed()):
        of_stock("mixtral", strategy)
    of_stock("gpt-oss", Fssdp(1, 3, rematerialise=True, calibrate=True))
    for strategy in (ExpertParallel(), Fssdp(1, 3), Tutel()):
        with_nothing(strategy)


def in_slices() -> None:
    """Two experts on four processes: each has half of the hidden units of one."""
    for strategy in (Tutel(0), Tutel(1), Tutel(2), DeepSpeed()):
        of_stock("mixtral-of-two", strategy)
    for strategy in (Tutel(1), Tutel(2), DeepSpeed()):
        of_stock("gpt-oss-of-two", strategy)


def in_transformers() -> None:
    """The same exchange, asked for by name where transformers shards a model out."""
    stock, model = built("mixtral"), built("mixtral")
    rank, world, meter = dist.get_rank(), dist.get_world_size(), Meter()
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("ep", "tp"))
    plan = {f"model.{n.replace('*', str(i))}": style for i in range(2)
            for n, style in model.config.base_model_ep_plan.items()}  # fmt: skip
    name = register_exchange(meter)
    apply_expert_parallelism(model, mesh["ep"], mesh["tp"], plan, ep_implementation=name)
    want, mine = stock(IDS).logits.detach(), IDS[rank::world]
    loss(stock, IDS).backward()
    got = model(mine).logits.detach()
    assert_close(got, want[rank::world], rtol=0, atol=1e-12 * float(want.abs().max()))
    meter.sent.clear()
    loss(model, mine).backward()
    size = ExpertSize(8, 6, 8, weight=weight_bytes(stock))
    as_planned(meter, ExpertParallel().plan(trace(stock.eval(), [IDS]), size, LINKS, backward=True))
    for name, weight in model.named_parameters():
        if ".experts." in name:
            full, grad = stock.get_parameter(name).grad, weight.grad.to_local()
            assert_close(
                grad, full.chunk(world)[rank], rtol=0, atol=1e-12 * float(full.abs().max())
            )
    shared = init_device_mesh("cpu", (1, world), mesh_dim_names=("ep", "tp"))
    try:
        apply_expert_parallelism(
            built("mixtral"), shared["ep"], shared["tp"], plan, ep_implementation="intarsia"
        )
    except ConfigError as error:
        assert "share a batch" in str(error)
    else:
        raise AssertionError("processes that share a batch were taken")


def written_by_all(folder: Path) -> None:
    """Write the experts of each process; one process opens the same bits."""
    for kind in ("mixtral", "olmoe", "qwen"):
        full, model = built(kind), built(kind)
        with attached(model, Fssdp(1, 3)) as parts:
            write_sharded(model, parts, folder / kind)
        if dist.get_rank() == 0:
            loaded: Any = type(full).from_pretrained(folder / kind, dtype=torch.float64)
            state = full.state_dict()
            assert loaded.state_dict().keys() == state.keys()
            assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
            assert len(list((folder / kind).glob("model-*-of-00004.safetensors"))) == 4
    with_changes(folder)
    model = built("gpt-oss")
    with attached(model, ExpertParallel()) as parts:
        try:
            write_sharded(model, parts, folder / "other")
        except ConfigError as error:
            assert "one tensor for all experts" in str(error), error
        else:
            raise AssertionError("fused experts were written")
    assert not (folder / "other").exists()


def with_changes(folder: Path) -> None:
    """`save` inside `attached`, called by all, writes what `save` in one process does; it loads."""
    for kind in ("mixtral", "gpt-oss", *OF_TWO):
        strategy = Tutel() if kind in OF_TWO else ExpertParallel()
        model: Any = apply(built(kind), FullTuning(), seed=0)
        target = folder / f"{kind}-changed"
        with attached(model, strategy) as parts:
            for weight in model.parameters():
                weight.data.mul_(1.5)
            save(model, target, parts=parts)
            pieces = {"model": parts.pieces(model.state_dict())}
            again = checkpoint.load(checkpoint.save_together(folder / f"{kind}-state", pieces))
            tensors = parts.own(again["model"])
            assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())
        if dist.get_rank() == 0:
            save(model, folder / f"{kind}-alone")
            names = sorted(path.name for path in target.iterdir())
            assert names == sorted(path.name for path in (folder / f"{kind}-alone").iterdir())
            for name in names:
                alone = folder / f"{kind}-alone" / name
                assert (target / name).read_bytes() == alone.read_bytes(), name
            loaded: Any = load(built(kind), target)
            state, full = model.state_dict(), WholeModel().own(again["model"])
            assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
            assert all(torch.equal(t, state[n]) for n, t in full.items())
        dist.barrier()
