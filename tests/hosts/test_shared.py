"""State that the cells of one adapter share: one parameter, saved, trained and deleted once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.adapters import Lora, Mos
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.folders.saved import load
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.config import IntarsiaConfig
from intarsia.hosts.attach.peft import IntarsiaLayer
from intarsia.hosts.folding.fold import fold
from intarsia.methods import BiAdapter

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Make = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]
Train = Callable[..., None]
MOS = Mos(3, 2, 4, 1, roles=("qkv", "projection"))
COUNT = 2 * 2 * ((32 + 96) + (32 + 32))  # e, layers, widths


def pools(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """Every parameter of the adapter's cells, listed wherever it is registered."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {n: p for n, p in parameters if f"intarsia_cells.{name}." in n}


@pytest.fixture
def model(make: Make, images: Images, train: Train) -> PeftModel:
    adapted = adapt(make("vit"), MOS)
    train(adapted, images("vit"))
    return adapted


def test_each_pool_is_one_parameter(model: PeftModel) -> None:
    tables = pools(model)
    assert len(tables) == 4  # a, b of two types, at one place only
    assert sum(p.numel() for p in tables.values()) == COUNT
    assert all(p.requires_grad and p.grad is None for p in tables.values())
    layers = [m for m in model.modules() if isinstance(m, IntarsiaLayer)]
    assert len(layers) == 4
    assert sum("shared" in m.intarsia_cells["default"]._modules for m in layers) == 1
    used = {id(t) for m in layers for t in m.intarsia_cells["default"]._pool[0].parameters()}  # pyright: ignore
    assert used == {id(p) for p in tables.values()}


def test_it_is_saved_once_and_loads_under_any_name(
    model: PeftModel, make: Make, images: Images, tmp_path: Path
) -> None:
    x = images("vit")
    state = get_peft_model_state_dict(model)
    floats = {n: t for n, t in state.items() if t.is_floating_point() and "head" not in n}
    assert sum(t.numel() for t in floats.values()) == COUNT
    indices = [t for n, t in state.items() if not t.is_floating_point()]
    assert len(indices) == 2 * 4 and all(t.dtype == torch.int32 for t in indices)
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        want = model(x)
        assert torch.equal(load(make("vit"), tmp_path, name="other")(x), want)
        for low in (False, True):
            again = PeftModel.from_pretrained(
                make("vit"), str(tmp_path), adapter_name="third", low_cpu_mem_usage=low
            )
            assert torch.equal(again.eval()(x), want)
            assert len(pools(again, "third")) == 4
            assert not any(p.is_meta for p in again.parameters())


def test_indices_come_from_the_file_not_from_the_seed(
    model: PeftModel, make: Make, images: Images, tmp_path: Path
) -> None:
    x = images("vit")
    model.save_pretrained(str(tmp_path))
    reseeded = adapt(make("vit"), MOS, seed=7)
    state = get_peft_model_state_dict(model)
    names = [n for n in state if n.endswith(".a")]
    assert any(not torch.equal(state[n], get_peft_model_state_dict(reseeded)[n]) for n in names)
    reseeded.load_adapter(str(tmp_path), "default")
    with torch.no_grad():
        torch.testing.assert_close(reseeded.eval()(x), model(x), rtol=0, atol=0)


def test_several_adapters_switch_train_and_go(
    model: PeftModel, make: Make, images: Images, train: Train
) -> None:
    x = images("vit")
    with torch.no_grad():
        first = model(x)
    adapt(model, Mos(4, 4, 2, 0, roles=("qkv",)), name="second")
    adapt(model, Lora(2), name="lora")
    assert all(p.requires_grad for p in pools(model).values())
    assert not any(p.requires_grad for p in pools(model, "second").values())
    model.set_adapter("second")
    assert not any(p.requires_grad for p in pools(model).values())
    assert all(p.requires_grad for p in pools(model, "second").values())
    train(model, x)
    with torch.no_grad():
        second = model(x)
        model.set_adapter("default")
        assert torch.equal(model(x), first)
        mixed = model(x, adapter_names=["default", "second", "default", "second"])
        torch.testing.assert_close(mixed[::2], first[::2])
        torch.testing.assert_close(mixed[1::2], second[1::2])
    model.delete_adapter("second")
    assert not pools(model, "second")
    with torch.no_grad():
        assert torch.equal(model(x), first)
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert not pools(model) and pools(model, "lora")


def test_a_copy_is_apart(model: PeftModel, images: Images, train: Train) -> None:
    x = images("vit")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(twin(x), before)
    train(twin, x)
    with torch.no_grad():
        assert torch.equal(model(x), before) and not torch.equal(twin(x), before)


def test_every_layer_trains_the_pools(make: Make, images: Images) -> None:
    model, x = adapt(make("vit"), MOS, head=None), images("vit")
    tables = pools(model)
    with torch.no_grad():
        for n, p in tables.items():
            if n.endswith(".b"):
                p.normal_(std=0.1)
    model(x).square().sum().backward()
    names = ("qkv_32x96.a", "proj_32x32.b")
    for grad in (p.grad for n, p in tables.items() if n.endswith(names)):
        assert grad is not None
        # private rows of both layers are the last ones: gradients came from both
        assert grad[-4:].any() and grad[-8:-4].any()


def test_merging_and_folding(model: PeftModel, images: Images) -> None:
    x = images("vit")
    with torch.no_grad():
        want = model(x)
        stock = fold(model, report=lambda _: None)
        torch.testing.assert_close(stock(x), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.merge_and_unload()(x), want, rtol=1e-4, atol=1e-4)


def test_it_follows_the_model_to_another_type(make: Make, images: Images) -> None:
    model = adapt(make("vit").bfloat16(), MOS)
    assert {p.dtype for p in pools(model).values()} == {torch.float32}
    assert model(images("vit").bfloat16()).dtype == torch.bfloat16
    assert {p.dtype for p in pools(model.double()).values()} == {torch.float64}
    assert model(images("vit").double()).dtype == torch.float64


def test_a_failed_adaptation_leaves_no_trace(make: Make) -> None:
    host = make("vit")
    before = [n for n, _ in host.named_modules()]
    with refused(ShapeError, what="width of 'blocks.0.attn.qkv'", got=32):
        adapt(host, Mos(4, 2, 5))
    with refused(ConfigError, what="rank in the 2 layers 'qkv_32x96'", got=40):
        adapt(host, Mos(40, 2, 4))
    assert [n for n, _ in host.named_modules()] == before


def test_through_peft_itself(make: Make, images: Images) -> None:
    options = {"rank": 3, "shards_per_vector": 4, "roles": ["qkv"]}
    config: dict[str, Any] = {"method": "mos", "options": options}
    x, host = images("vit"), make("vit")
    with torch.no_grad():
        want = host(x)
        assert torch.equal(get_peft_model(make("vit"), IntarsiaConfig(**config)).eval()(x), want)
        injected = inject_adapter_in_model(IntarsiaConfig(**config), host)
    assert len(pools(injected)) == 2  # without a PeftModel around it, too
    assert all(p.requires_grad for p in pools(injected).values())


def test_a_language_model_with_grouped_keys() -> None:
    torch.manual_seed(0)
    host = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(64, (2, 7))
    with torch.no_grad():
        want = host(input_ids=ids).logits
        model = adapt(host, Mos(3, 2, 4), head=None).eval()
        assert torch.equal(model(input_ids=ids).logits, want)
    widths = 3 * (32 + 32) + 2 * (32 + 16) - (32 + 32) + 3 * (32 + 48)  # q, o, k, v, MLP
    assert sum(p.numel() for p in pools(model).values()) == 2 * 2 * widths
    model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in pools(model).values())


def test_cells_that_share_are_not_coded() -> None:
    with refused(ConfigError, what="over", got="Mos, whose cells share their weights"):
        BiAdapter(Mos())
