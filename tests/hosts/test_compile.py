"""A compiled model is one graph, and computes what the model does without it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.mixtures import Capacity, Mixture, SplitLinear, StackedExperts


def vit(depth: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=3, depth=depth, embed_dim=32, num_heads=2, img_size=32, patch_size=16,
    )  # fmt: skip


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def images() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(4, 3, 32, 32, generator=generator)}


def padded() -> dict[str, Tensor]:
    ids = torch.arange(14).view(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


ROUTER = intarsia.TopK(4, 2, balance=0.01, z=0.01)
RMOE = intarsia.routers.Recurrent(4, 2, hidden=8)
# no dropout, whose draws would be others
MIXLORA = intarsia.methods.MixLora(intarsia.TopK(4, 2), over=intarsia.Lora(2), attention=None)
LLAVA_MOLE = intarsia.senses.LlavaMole(over=intarsia.Lora(2), attention=None)
MODELS: dict[str, Any] = {
    "mosa": (lambda: intarsia.adapt(vit(2), intarsia.Mosa(), seed=0), images),
    "adamix": (lambda: intarsia.adapt(vit(), intarsia.methods.Adamix(), seed=0), images),
    "mixlora": (lambda: intarsia.adapt(vit(), MIXLORA, seed=0), images),
    "llava_mole": (lambda: intarsia.adapt(vit(), LLAVA_MOLE, seed=0), images),
    "upcycled ViT": (lambda: intarsia.upcycle(vit(2), ROUTER), images),
    "upcycled ViT, RMoE": (lambda: intarsia.upcycle(vit(2), RMOE), images),
    "upcycled Llama, padded": (lambda: intarsia.upcycle(llama(), ROUTER), padded),
}  # fmt: skip


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    out = model(**batch)
    if not isinstance(out, Tensor):  # what is said of padding is left out
        out = out.logits[batch["attention_mask"].bool()]
    scale = torch.linspace(-1, 1, out.numel()).view_as(out)
    return (out * scale).sum() + intarsia.gating.aux_loss(model)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_is_one_graph_and_computes_the_same(name: str) -> None:
    make, batch = MODELS[name]
    torch._dynamo.reset()
    plain = make().train()
    graph = copy.deepcopy(plain)
    breaks = torch._dynamo.utils.counters["graph_break"]
    breaks.clear()
    # not fullgraph=True, which also captures shapes that depend on data
    compiled = torch.compile(graph, backend="aot_eager")
    for _ in range(2):  # each forward draws anew, and both draw the same
        want, got = losses(plain, batch()), losses(compiled, batch())
        assert_close(got, want, rtol=1e-4, atol=1e-5)
        want.backward()
        got.backward()
    assert dict(breaks) == {}
    for (path, p), q in zip(plain.named_parameters(), graph.parameters(), strict=True):
        assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=path)
    ours, theirs = (
        [m.seen.tolist() for m in model.modules() if isinstance(m, SplitLinear)]
        for model in (graph, plain)
    )
    assert ours == theirs


# the graph breaks there, and torch reads the gradients of what passes the break
@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "router",
    [intarsia.TopK(4, 2), intarsia.routers.Switch(4, 1.0), intarsia.routers.ExpertChoice(4)],
)
def test_padding_takes_no_place_of_a_capacity_in_a_graph(router: Any) -> None:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    capacity = Capacity(0.5, least=1) if isinstance(router, intarsia.TopK) else None
    experts = StackedExperts(4, 8, 16, bias=True, generator=generator)
    gate = router.build(8, generator=generator)
    mixture = Mixture(experts, gate, capacity=capacity).train()
    gate.context.valid = torch.arange(14).view(2, 7) % 3 > 0
    x = torch.randn(2, 7, 8, generator=generator)
    assert_close(torch.compile(mixture, backend="aot_eager")(x), mixture(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports what torch deprecates
def test_inductor_computes_what_the_model_does() -> None:
    torch._dynamo.reset()
    plain = MODELS["mosa"][0]().train()
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True)
    assert_close(losses(compiled, images()), losses(plain, images()), rtol=1e-4, atol=1e-5)
