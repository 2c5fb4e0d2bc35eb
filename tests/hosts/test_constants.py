"""What is constant of an image is kept, and what nobody reads is left out: the same model."""

from contextlib import ExitStack

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

import intarsia
from intarsia import Bottleneck, Lora, Mosa, adapt
from intarsia.core.registry import card, settings_from_dict
from intarsia.data import ImageTensors
from intarsia.gating import random_sources, redraw
from intarsia.hosts.anatomy.blocks import base_of
from intarsia.hosts.anatomy.class_token import reading_class_token
from intarsia.hosts.anatomy.constants import find_constants, keeping_constants
from intarsia.hosts.anatomy.prefix import first_trained_block, reading_tokens, run_prefix
from intarsia.train.precision import learned_state, training_mode

FP32 = torch.float32


def host(**settings):
    torch.manual_seed(0)
    with_ls = {"init_values": 0.5, "embed_dim": 24, "num_heads": 2, "depth": 4, "num_classes": 3}
    name = "vit_small_patch14_dinov2"
    return timm.create_model(name, img_size=42, **with_ls | settings)


def convolutional():
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=3)


def placed(placement, **settings):
    return Bottleneck(4, placement=placement, activation="gelu", init="houlsby", **settings)


def method(name):
    model = host()
    if name in ("bitfit", "norms", "ssf", "peft-dora", "peft-lora", "peft-ia3", "vpt-deep"):
        return intarsia.apply(model, settings_from_dict(card(name), {}))
    kinds = {
        "lora": Lora(4),
        "mosa": Mosa(over=placed("adaptformer"), active=2),
        "mosl": Mosa(over=Lora(4), split="both"),
        "dropout": placed("pfeiffer", dropout=0.3),
    }
    return adapt(model, kinds.get(name) or placed(name), layers=[2, 3])


def shaken(model):
    """Nothing that is trained is at its start of 0."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=noise)
    return model


def step(model, x, seed=3):
    """Logits and gradients of one step."""
    torch.manual_seed(seed)
    for source in random_sources(model).values():
        source.generator.manual_seed(seed)
    redraw(model)
    model.zero_grad()
    logits = model(x)
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


METHODS = (
    *("adaptformer", "pfeiffer", "houlsby", "adapter+", "lora", "mosa", "mosl", "bitfit", "norms"),
    *("ssf", "peft-dora", "peft-lora", "peft-ia3"),
)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rows", [1, 5])
def test_rows_and_the_class_token_give_what_tokens_give(name, rows):
    model = shaken(method(name))
    training_mode(model)
    pictures = TensorDataset(torch.randn(7, 3, 42, 42), torch.arange(7) % 3)
    with ExitStack() as stack:
        prefix = stack.enter_context(reading_tokens(model, 2))
        tokens = held(run_prefix(prefix, pictures, dtype=FP32))
        training_mode(model)
        want = step(model, tokens.tensors[0][:rows])
        before = {n: t.clone() for n, t in learned_state(model).items()}
        assert stack.enter_context(reading_class_token(model, tokens[0][0][None]))
        tokens_kept, _ = stack.enter_context(keeping_constants(model, tokens, dtype=FP32))
        assert (tokens_kept is not tokens) != (name in ("bitfit", "norms"))
        for x in (tokens_kept.tensors[0][:rows], tokens.tensors[0][:rows]):
            got = step(model, x)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(learned_state(model), before, rtol=0, atol=0)
    full = model(pictures.tensors[0][:rows])
    assert full.shape == (rows, 3) and "forward" not in vars(base_of(model))


def held(tokens):
    return ImageTensors(*tokens.tensors, digests=[str(n) for n in range(len(tokens))])


def names_of(model, constants):
    paths = {m: n for n, m in model.named_modules()}
    pairs = zip(constants.modules, constants.needed, strict=True)
    return [paths[m].partition("blocks.")[2] for m, needed in pairs if needed]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("adaptformer", ["2.ls1", "2.norm2", "2.mlp.base_layer"]),
        ("pfeiffer", ["2.ls1", "2.mlp.base_layer"]),
        ("houlsby", ["2.attn.base_layer"]),
        ("adapter+", ["2.base_layer"]),
        ("lora", ["2.norm1", "2.attn.qkv.base_layer"]),
        ("dropout", ["2.ls1", "2.mlp.base_layer"]),
    ],
)
def test_what_is_kept_ends_at_the_first_trained_module(name, want):
    model = method(name)
    with reading_tokens(model, 2):
        constants = find_constants(model, torch.randn(2, 10, 24), FP32)
    assert constants is not None
    assert names_of(model, constants) == want


def test_a_trunk_with_dropout_keeps_nothing_that_follows_it():
    model = adapt(host(proj_drop_rate=0.5), placed("adaptformer"), layers=[2, 3])
    with reading_tokens(model, 2):
        constants = find_constants(model, torch.randn(2, 10, 24), FP32)
    assert constants is not None
    assert names_of(model, constants) == ["2.norm1"]


def test_maps_of_an_efficientnet_are_kept_too():
    model = shaken(adapt(convolutional(), Bottleneck(2, placement="pfeiffer"), layers=[2, 3]))
    pictures = TensorDataset(torch.randn(5, 3, 32, 32), torch.arange(5) % 3)
    with reading_tokens(model, first_trained_block(model)) as prefix:
        tokens = held(run_prefix(prefix, pictures, dtype=FP32))
        training_mode(model)
        want = step(model, tokens.tensors[0][:3])
        with keeping_constants(model, tokens, dtype=FP32) as (maps, _):
            assert maps is not tokens and maps.digests == tokens.digests
            torch.testing.assert_close(step(model, maps.tensors[0][:3]), want)


def test_without_room_the_tokens_stay(monkeypatch):
    model = method("pfeiffer")
    tokens = held(TensorDataset(torch.randn(3, 10, 24), torch.arange(3)))
    monkeypatch.setattr("intarsia.hosts.anatomy.constants.SHARE", 0.0)
    with (
        reading_tokens(model, 2),
        keeping_constants(model, tokens, dtype=FP32) as (constants, also),
    ):
        assert constants is tokens and also(tokens, lambda _, make: make()) is tokens


def test_other_sets_are_scored_on_rows_that_runs_of_one_trunk_share():
    memory: dict[str, torch.Tensor] = {}

    def once(mark, make):
        key = repr(mark)
        return memory[key] if key in memory else memory.setdefault(key, make())

    tokens, test_tokens = (
        held(TensorDataset(torch.randn(n, 10, 24), torch.arange(n) % 3)) for n in (4, 6)
    )
    logits = []
    for seed in range(2):  # two runs: other adapters on one trunk
        torch.manual_seed(seed)
        model = shaken(method("adaptformer")).eval()
        with reading_tokens(model, 2), torch.no_grad():
            want = model(test_tokens.tensors[0])
            with keeping_constants(model, tokens, dtype=FP32) as (_, also):
                rows = also(test_tokens, once)
                assert rows is not test_tokens and rows.digests == test_tokens.digests
                torch.testing.assert_close(model(rows.tensors[0]), want, rtol=1e-4, atol=1e-5)
            logits.append(want)
    assert len(memory) == 1
    with torch.no_grad():  # another trunk has rows of its own
        next(p for n, p in model.named_parameters() if "blocks.2.norm1.weight" in n).add_(1.0)
    with reading_tokens(model, 2), keeping_constants(model, tokens, dtype=FP32) as (_, also):
        also(test_tokens, once)
    assert len(memory) == 2


class Mixing(nn.Module):
    """Adds to each token the mean of all: no cell of single tokens."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = self.inner(x)
        return y + self.gain * y.mean(1, keepdim=True)


@pytest.mark.parametrize("case", ["pooled", "mixing", "prompts", "convolutional"])
def test_a_model_that_reads_other_tokens_computes_them(case):
    model = {
        "pooled": lambda: adapt(host(global_pool="avg"), Lora(2)),
        "mixing": lambda: adapt(host(), Lora(2)),
        "prompts": lambda: method("vpt-deep"),
        "convolutional": lambda: adapt(convolutional(), Bottleneck(2, placement="pfeiffer")),
    }[case]()
    if case == "mixing":
        block = base_of(model).blocks[-1]
        block.mlp = Mixing(block.mlp)
    x = torch.randn(1, 3, 42, 42)
    want = model.eval()(x)
    with reading_class_token(model, x) as short:
        assert not short
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
