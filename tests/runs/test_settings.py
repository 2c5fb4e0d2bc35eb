"""--set and --objective: text becomes values of the right types, or an error that says which."""

from __future__ import annotations

from functools import partial

import pytest

from intarsia import Bottleneck, Lora, Mosa, TopK
from intarsia.adapters import Mos
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.methods import Adamix, BiAdapter, MixLora
from intarsia.routers import Switch, TopP
from intarsia.runs.experiment import Adapted
from intarsia.runs.settings import chosen, describe_method, method, objective, words
from intarsia.train import Training, plain, two_pass

from ..refusals import refused


@pytest.mark.parametrize(
    ("key", "texts", "want"),
    [
        ("mosa", [], Mosa()),
        ("mosa", ["experts=8", "active=2"], Mosa(experts=8, active=2)),
        ("mosa", ["over.bottleneck=16"], Mosa(over=Bottleneck(16, activation="gelu"))),
        ("mosa", ["over.activation="], Mosa(over=Bottleneck())),
        ("mosa", ["over=lora", "over.rank=8"], Mosa(over=Lora(8))),
        ("mosa", ["over.rank=8", "over=lora"], Mosa(over=Lora(8))),
        ("lora", ["roles=qkv,projection", "alpha=4"], Lora(alpha=4.0, roles=("qkv", "projection"))),
        ("bottleneck", ["scale=0.5"], Bottleneck(scale=0.5)),
        ("bottleneck", ["scale=channel", "norm=none"], Bottleneck(scale="channel", norm="none")),
        ("adamix", [" experts = 2 "], Adamix(experts=2)),
        # any adapter inside, a router inside, and nothing inside
        ("bi", ["over=mosa", "over.experts=2"], BiAdapter(over=Mosa(experts=2))),
        (
            "mixlora",
            ["over.rank=4", "router.experts=4", "attention="],
            MixLora(TopK(4), Lora(4, 32.0, 0.05), None),
        ),
    ],
)
def test_text_becomes_settings(key: str, texts: list[str], want: object) -> None:
    assert method(key, texts) == want


@pytest.mark.parametrize(
    "config",
    [
        Mosa(), Mosa(experts=8), Mosa(over=Lora(8, alpha=2.0)), Mosa(over=Bottleneck(16)),
        Lora(roles=("qkv", "mlp_linear")), Bottleneck(scale="layer", dropout=0.5),
        Adamix(over=Bottleneck(8, activation="gelu"), noise=0.01),
        MixLora(TopP(4), Mos(4), None), MixLora(Switch(4), attention=None),
    ],
    ids=repr,
)  # fmt: skip
def test_words_are_what_set_reads(config: object) -> None:
    key = type(config).__name__.lower()
    assert method(key, words(config)) == config  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("key", "texts", "error", "says"),
    [
        ("moza", [], UnknownName, "or mosa"),
        ("random", [], UnknownName, "unknown method"),
        ("mosa", ["exprts=4"], UnknownName, "Did you mean experts"),
        ("mosa", ["EPOCHS=4"], UnknownName, "unknown setting"),
        ("mosa", ["over.rank=8"], UnknownName, "'over.rank'"),
        ("mosa", ["over=lorra"], UnknownName, "Did you mean lora"),
        ("mosa", ["experts=four"], ConfigError, "got 'four', want a whole number"),
        ("mosa", ["experts=2.5"], ConfigError, "want a whole number"),
        ("mosa", ["experts="], ConfigError, "got ''"),
        ("mosa", ["experts"], ConfigError, "want name=value"),
        ("mosa", ["=4"], ConfigError, "want name=value"),
        ("mosa", ["experts=4", "experts=8"], ConfigError, "it twice"),
        ("mosa", ["experts.x=4"], ConfigError, "experts is no method"),
        ("mosa", ["experts=0"], ConfigError, "want at least 1"),
        ("mosa", ["active=5"], ConfigError, "1 ... 4"),
        ("bottleneck", ["dropout=high"], ConfigError, "want a number"),
        ("bottleneck", ["dropout=nan"], ConfigError, "dropout"),
        ("lora", ["roles=,"], ConfigError, "several with commas"),
    ],
)
def test_a_wrong_setting(key: str, texts: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says.replace("(", r"\(")):
        method(key, texts)


def test_objectives() -> None:
    assert objective("plain") is plain
    loss = objective("two_pass:add=1,reg=0.5,detach=no")
    assert isinstance(loss, partial) and loss.func is two_pass
    assert loss.keywords == {"add": 1.0, "reg": 0.5, "detach": False}


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("two_pas", "'two_pas'"),
        ("two_pass:ad=1", "'ad'"),
        ("two_pass:add=x", "'x'"),
        ("two_pass:detach=maybe", "'maybe'"),
        ("two_pass:model=1", "'model'"),
        ("two_pass:add", "'add'"),
    ],
)
def test_a_wrong_objective(text: str, got: str) -> None:
    with refused(ConfigError, UnknownName, got=got):
        objective(text)


@pytest.mark.parametrize(
    ("adapted", "record"),
    [
        (Adapted(method="bitfit"), "bitfit"),
        (Adapted(method="bitfit", settings=("last_blocks=0",)), "bitfit"),
        (Adapted(method="bitfit", last_blocks=3), {"method": "bitfit", "last_blocks": 3}),
        (
            Adapted(method="vpt-deep", settings=("prompts=4", "dropout=0"), last_blocks=6),
            {"method": "vpt-deep", "last_blocks": 6, "prompts": 4},
        ),
        (Adapted(method="peft-lora", settings=("roles=qkv",)), "peft-lora"),
        (Adapted(method="linear"), "linear"),
    ],
)
def test_a_record_says_what_of_a_baseline_was_set(adapted: Adapted, record: object) -> None:
    assert describe_method(chosen(adapted, Training())) == record


def test_last_blocks_are_said_once() -> None:
    adapted = Adapted(method="bitfit", last_blocks=6, settings=("last_blocks=0",))
    with refused(ConfigError, what="--set last_blocks"):
        chosen(adapted, Training())


@pytest.mark.parametrize(
    ("method", "blocks", "targets", "named"),
    [
        ("linear", 2, (), "--last-blocks with"),
        ("linear", 2, ("mlp",), "--last-blocks and --target with"),
        ("bitfit", 2, ("mlp",), "--target with"),
    ],
)
def test_the_options_that_a_baseline_refuses_are_named(
    method: str, blocks: int, targets: tuple[str, ...], named: str
) -> None:
    with refused(ConfigError, got="places for cells"):
        chosen(Adapted(method=method, last_blocks=blocks, targets=targets), Training())
