"""A delta adds, takes away, sums up and comes back from disk; what does not fit changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, ShapeError, TargetError
from intarsia.hosts.anatomy.own_weights import own_parameters
from intarsia.hosts.delta.cells import attach_delta, delta_of
from intarsia.hosts.delta.sparse_delta import SparseDelta

from ..refusals import refused

VIT = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def vit(seed: int = 0, **changes: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **(VIT | changes)).eval()


def llama(seed: int = 0, tied: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def delta(
    model: nn.Module, share: float = 0.05, seed: int = 0, names: tuple[str, ...] = ()
) -> SparseDelta:
    """Random entries of a model's matrices, or of the parameters named."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(p): (n, p) for n, p in reversed(own_parameters(model).items())}
    changed = {n: p for n, p in parameters.values() if n in names or (not names and p.dim() > 1)}
    entries = {}
    for n, p in changed.items():
        index = (torch.rand(p.numel(), generator=generator) < share).nonzero().flatten()
        entries[n] = index, 0.1 * torch.randn(len(index), generator=generator)
    return SparseDelta.of(entries, changed, {})


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in own_parameters(model).items()}


def same(model: nn.Module, saved: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, saved[n]) for n, p in own_parameters(model).items())


def test_apply_adds_to_the_entries_and_to_nothing_else() -> None:
    model, phi = vit(), delta(vit())
    before = bits(model)
    phi.apply(model)
    for n, p in own_parameters(model).items():
        want = before[n].flatten().clone()
        if n in phi.entries:
            for place, value in zip(*(t.tolist() for t in phi.entries[n]), strict=True):
                want[place] += value
        assert torch.equal(p.flatten(), want)


def test_revert_is_within_one_rounding() -> None:
    model, phi = vit(), 1e3 * delta(vit(), share=1.0)
    before = bits(model)
    phi.apply(model)
    phi.revert(model)
    for n, p in own_parameters(model).items():
        if n in phi.entries:
            largest = before[n].abs() + phi.entries[n][1].abs().max()
            assert ((p - before[n]).abs() <= torch.finfo(p.dtype).eps * largest).all()
        else:
            assert torch.equal(p, before[n])


@given(st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_inside_a_context_it_is_there_and_afterwards_no_bit_has_moved(
    size: float, dtype: torch.dtype
) -> None:
    model, phi = vit().to(dtype), size * delta(vit().to(dtype))
    before = bits(model)
    with phi.applied(model):
        with phi.applied(model):
            pass
        inside = bits(model)
    assert same(model, before)
    phi.apply(model)
    assert same(model, inside)


def test_after_an_error_inside_no_bit_has_moved() -> None:
    model, phi = vit(), delta(vit())
    before = bits(model)
    with pytest.raises(ZeroDivisionError), phi.applied(model):
        raise ZeroDivisionError
    assert same(model, before)


def test_training_on_several_sources_keeps_what_was_learned_and_nothing_else() -> None:
    """The reference adds the delta of each batch's source outside the weights."""
    model, twin = vit().double(), vit().double()
    sources = [delta(vit().double(), seed=s) for s in (0, 1)]
    learns = "blocks.0.mlp.fc1.weight"
    for m in (model, twin):
        m.requires_grad_(False)
        m.get_parameter(learns).requires_grad_(True)
    before = bits(model)
    optimizers = [torch.optim.SGD([m.get_parameter(learns)], lr=0.5) for m in (model, twin)]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        x = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
        phi = sources[step % 2]
        with phi.applied(model):
            model(x).square().sum().backward()
            optimizers[0].step()
        changed = {n: p for n, p in own_parameters(twin).items() if n in phi.entries}
        moved = {}
        for n, p in changed.items():
            index, values = phi.entries[n]
            moved[n] = p + torch.zeros(p.numel()).double().index_add(
                0, index, values.double()
            ).view_as(p)
        torch.func.functional_call(twin, moved, (x,)).square().sum().backward()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert_close(model.get_parameter(learns), twin.get_parameter(learns))
    assert not torch.equal(model.get_parameter(learns), before[learns])
    frozen = {n: p for n, p in before.items() if n != learns}
    assert all(torch.equal(model.get_parameter(n), p) for n, p in frozen.items())


def test_sums_commute_and_agree_with_applying_one_after_the_other() -> None:
    a, b = (delta(vit(), seed=s, share=0.3) for s in (0, 1))
    first, second, third = vit(), vit(), vit()
    (a + b).apply(first)
    (b + a).apply(second)
    assert same(first, bits(second))
    for phi in (b, a):
        phi.apply(third)
    fourth = vit()
    for phi in (a, b):
        phi.apply(fourth)
    for n, p in own_parameters(third).items():
        assert_close(p, first.get_parameter(n))
        assert_close(p, fourth.get_parameter(n))


def test_arithmetic() -> None:
    a, b = (delta(vit(), seed=s, share=0.2) for s in (0, 1))
    dense = {
        n: torch.zeros(torch.Size(shape)).flatten().index_copy(0, *a.entries[n])
        for n, shape in a.shapes.items()
    }
    second = {
        n: torch.zeros(torch.Size(shape)).flatten().index_copy(0, *b.entries[n])
        for n, shape in b.shapes.items()
    }
    got = 0.5 * a - b * 2
    for n in dense:
        full = torch.zeros_like(dense[n]).index_copy(0, *got.entries[n])
        assert_close(full, 0.5 * dense[n] - 2 * second[n])
    assert len(a + (-a)) == 0
    assert len(0 * a) == 0
    assert len(a + b) <= len(a) + len(b)
    assert 0 < a.density < 0.3


def test_a_file_gives_back_the_same_bits(tmp_path: Path) -> None:
    model = vit()
    heads = {"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)}
    plain = delta(model)
    phi = SparseDelta(plain.entries, plain.shapes, plain.base, heads)
    phi.save(tmp_path / "deep" / "er.safetensors")
    back = SparseDelta.load(tmp_path / "deep" / "er.safetensors")
    assert back.shapes == phi.shapes and back.base == phi.base
    for n, (index, values) in phi.entries.items():
        assert torch.equal(back.entries[n][0], index) and back.entries[n][0].dtype == torch.int64
        assert torch.equal(back.entries[n][1], values)
    before = bits(model)
    with back.applied(model):
        assert torch.equal(model.get_parameter("head.weight"), heads["head.weight"])
    assert same(model, before)
    # 12 bytes an entry, and little else
    size = (tmp_path / "deep" / "er.safetensors").stat().st_size
    assert size < 12 * len(phi) + 4 * 165 + 20_000
    assert not list(tmp_path.rglob("*.tmp"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, path)


@pytest.mark.parametrize("damage", [_cut, _flip, _foreign, Path.unlink])
def test_a_damaged_file_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    delta(vit()).save(path)
    damage(path)
    with pytest.raises(CheckpointError, match="delta"):
        SparseDelta.load(path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: vit(seed=1), "base of the delta.*of .* samples are the same"),
        (lambda: vit(embed_dim=64), "delta of .*want shape"),
        (lambda: vit(depth=1), "delta of 'blocks.1.*no parameter of that name"),
        (llama, "no parameter of that name"),
    ],
)
def test_another_base_is_refused_and_left_alone(
    base: Callable[[], nn.Module], message: str
) -> None:
    model, phi = base(), delta(vit())
    before = bits(model)
    for use in (phi.apply, phi.revert, phi.applied(model).__enter__, phi.check):
        with pytest.raises(CheckpointError, match=message):
            use() if use.__name__ == "__enter__" else use(model)
    with pytest.raises(CheckpointError, match=message):
        attach_delta(model, phi)
    assert same(model, before)


def test_a_base_in_half_precision_or_with_other_deltas_is_the_base() -> None:
    a, b = (delta(vit(), seed=s, share=0.3) for s in (0, 1))
    model = vit().bfloat16()
    a.apply(model)
    b.apply(model)
    a.revert(model)
    full = delta(vit(), share=1.0)
    model = vit()
    full.apply(model)
    full.revert(model)  # every sample has moved, by what the delta says


def test_deltas_of_two_bases_do_not_add_up() -> None:
    with refused(ConfigError, what="sum of deltas"):
        delta(vit()) + delta(vit(seed=1))


def test_a_task_that_was_trained_on_its_source_adds_up_with_another_target() -> None:
    """The paper's order: phi_T is found at theta_0 + phi_S and applied at theta_0 + phi_target."""
    source, target = delta(vit(), 0.5, seed=1), delta(vit(), 0.5, seed=2)
    model = vit()
    source.apply(model)
    task = delta(model, seed=3)
    with refused(ConfigError, what="sum of deltas"):
        _ = task + target
    both = task.rebased(source) + target
    got, want = vit(), vit()
    both.apply(got)
    target.apply(want)
    task.apply(want, check=False)
    for n, p in own_parameters(got).items():
        assert_close(p, own_parameters(want)[n])
    assert task.rebased(source).entries == task.entries
    with refused(ConfigError, what="base of the delta"):
        task.rebased(target)


def test_two_heads_do_not_add_up() -> None:
    plain = delta(vit())
    a, b = (
        SparseDelta(plain.entries, plain.shapes, plain.base, {"head.bias": torch.full((5,), v)})
        for v in (0.0, 1.0)
    )
    with refused(ConfigError, what="sum of deltas, head 'head.bias'"):
        a + b
    total = a + b.without_heads()
    assert torch.equal(total.heads["head.bias"], torch.zeros(5))
    assert torch.equal((-total).heads["head.bias"], torch.zeros(5))


@pytest.mark.parametrize(
    "index", [[0, 0], [1, 0], [-1, 0], [0, 9]], ids=["twice", "falling", "negative", "outside"]
)
def test_places_that_cannot_be_are_refused(index: list[int]) -> None:
    with refused(ShapeError, what="entries of 'a'"):
        SparseDelta({"a": (torch.tensor(index), torch.ones(2))}, {"a": (3, 3)}, {})
    with refused(ShapeError, what="entries of 'a'"):
        SparseDelta({"a": (torch.tensor([0]).int(), torch.ones(1))}, {"a": (3, 3)}, {})


def test_a_tied_weight_is_changed_once() -> None:
    model = llama()
    name = "model.embed_tokens.weight"
    phi = delta(model)
    assert name in phi.entries and "lm_head.weight" not in phi.entries
    before = bits(model)
    phi.apply(model)
    index, values = phi.entries[name]
    want = before[name].flatten().index_add(0, index, values)
    assert torch.equal(model.get_parameter(name).flatten(), want)
    # a delta of untied weights would change them twice
    untied = delta(llama(tied=False))
    assert "lm_head.weight" in untied.entries
    before = bits(model)
    with refused(CheckpointError, what="delta of 'model.embed_tokens.weight'"):
        untied.apply(model)
    assert same(model, before)


LINEAR = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight")


def test_a_delta_becomes_an_adapter_and_comes_back(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    plain = delta(vit(), names=LINEAR)
    phi = SparseDelta(
        plain.entries, plain.shapes, plain.base,
        {"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)},
    )  # fmt: skip
    applied = vit()
    phi.apply(applied)
    model = attach_delta(vit(), phi, "german")
    model.set_adapter("german")
    assert_close(model(x), applied(x))
    back = delta_of(model, "german")
    assert {n for n, (i, _) in back.entries.items() if len(i)} == set(LINEAR)
    for n in LINEAR:
        assert torch.equal(back.entries[n][0], phi.entries[n][0])
        assert torch.equal(back.entries[n][1], phi.entries[n][1])
    assert back.heads.keys() == phi.heads.keys()
    assert all(torch.equal(back.heads[n], h) for n, h in phi.heads.items())
    # the number of entries is known before the tensors arrive
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "german" / "adapter_config.json").read_text())
    assert stored["method"] == "sparse" and len(stored["options"]["entries"]) == 3
    again = intarsia.load(vit(), tmp_path / "german")
    assert_close(again(x), applied(x))
    assert_close(intarsia.fold(again, report=lambda _: None)(x), applied(x), rtol=1e-4, atol=1e-5)


def test_a_delta_sits_beside_other_adapters_in_one_saved_model(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = intarsia.adapt(vit(), intarsia.Lora(2), name="lora", head=None)
    model = attach_delta(model, delta(vit(), names=LINEAR[:1]), "delta")
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    model.base_model.set_adapter(["lora", "delta"])  # pyright: ignore
    both = model(x)
    model.set_adapter("delta")
    assert (model(x) - both).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    again = intarsia.load(vit(), tmp_path / "lora", name="lora")
    again = intarsia.load(again, tmp_path / "delta", name="delta")
    again.base_model.set_adapter(["lora", "delta"])  # pyright: ignore
    assert_close(again.eval()(x), both)


def test_what_is_no_linear_layer_takes_no_cell() -> None:
    model, phi = vit(), delta(vit(), names=("blocks.0.mlp.fc1.weight", "pos_embed"))
    before = bits(model)
    with refused(TargetError, what="delta of 'pos_embed'"):
        attach_delta(model, phi)
    assert same(model, before) and type(model).__name__ == "VisionTransformer"
    with refused(ConfigError, what="delta"):
        attach_delta(vit(), 0 * phi)
    with refused(ConfigError, what="adapter", got="None"):
        delta_of(vit())


def test_a_low_rank_adapter_is_a_delta_too() -> None:
    x = torch.randn(2, 3, 32, 32)
    model = intarsia.adapt(vit(), intarsia.Lora(2), head=None)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    phi, plain = delta_of(model), vit()
    phi.apply(plain)
    assert_close(plain(x), model.eval()(x), rtol=1e-4, atol=1e-5)
