"""The bottleneck cell in its four published placements: initial output, variants, norm."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, BottleneckCell
from intarsia.adapters.bottleneck import (
    ACTIVATIONS,
    NORMS,
    PLACEMENTS,
    ResidualNorm,
)
from intarsia.core import Site
from intarsia.core.errors import ConfigError, TargetError

from ..refusals import refused
from ..toys import seeded as gen

WIDTH, OUT = 6, 4
FUNCTIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def layer_norm(seed: int = 0, width: int = WIDTH) -> nn.LayerNorm:
    """A host's LayerNorm after pretraining: gains and shifts of all sizes."""
    norm = nn.LayerNorm(width, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width, generator=gen(seed), dtype=torch.float64) + 3)
        norm.bias.copy_(torch.randn(width, generator=gen(seed + 1), dtype=torch.float64))
    return norm


def site(position: str = "parallel", norm: nn.LayerNorm | None = None) -> Site:
    host_norm = (norm.weight, norm.bias) if norm is not None else None
    outputs = WIDTH if position == "sequential" else OUT
    return Site("b.mlp", WIDTH, outputs, position, norm=host_norm)


def build(config: Bottleneck, seed: int = 0, norm: nn.LayerNorm | None = None) -> BottleneckCell:
    norm = layer_norm() if norm is None else norm
    return config.build(site(config.position, norm), generator=gen(seed)).double()


def randomize(cell: nn.Module, seed: int = 9) -> None:
    generator = gen(seed)
    for parameter in cell.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("norm", [None, "none", "layer"])
def test_a_cell_that_starts_at_zero_adds_nothing(placement: str, norm: str | None) -> None:
    cell = build(Bottleneck(3, placement, norm=norm, init="zero"))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    assert not cell(x).any()
    assert cell.zero_sides == {"up"}


@pytest.mark.parametrize("placement", ["houlsby", "adapter+"])
def test_a_cell_that_starts_near_zero_adds_little(placement: str) -> None:
    config = Bottleneck(64, placement)
    cell = config.build(Site("b", 96, 96, config.position), generator=gen())
    x = torch.randn(2, 5, 96)
    assert 0 < float(cell(x).detach().norm()) < 0.05 * float(x.norm())
    for layer in (cell.down, cell.up):
        assert layer.weight.abs().max().item() <= 0.02
        assert 0.008 < layer.weight.std().item() < 0.0095  # sigma 0.01, cut at 2 sigma: 0.0088
        assert not layer.bias.any()
    assert cell.zero_sides == frozenset()


@pytest.mark.parametrize(
    ("placement", "activation", "norm", "scale"),
    list(itertools.product(PLACEMENTS, ACTIVATIONS, NORMS, [0.3, "layer", "channel"])),
)
def test_the_cell_is_its_formula(
    placement: str, activation: str, norm: str, scale: float | str
) -> None:
    host = layer_norm()
    cell = build(Bottleneck(3, placement, activation, norm, scale), norm=host)
    randomize(cell)
    h = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    x = host(h) if norm == "residual" else h
    z = x
    if norm == "rms":
        z = F.rms_norm(h, (WIDTH,), cell.norm.get_parameter("weight"), eps=1e-6)
    elif norm != "none":
        gain, shift = cell.norm.weight, cell.norm.bias
        assert isinstance(gain, Tensor)
        assert isinstance(shift, Tensor)
        z = F.layer_norm(h, (WIDTH,), gain, shift, eps=1e-6)
    z = FUNCTIONS[activation](F.linear(z, cell.down.weight, cell.down.bias))
    expected = F.linear(z, cell.up.weight, cell.up.bias) * cell.scale
    assert_close(cell(x), expected)
    assert cell(x).shape == (2, 5, cell.up.out_features)
    if norm in ("none", "residual"):
        units = cell.units()
        z = units.act(F.linear(x, units.rows, units.bias))
        assert_close(F.linear(z, units.columns, units.shift), expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_unset_settings_are_those_of_the_placement(placement: str) -> None:
    config, published = Bottleneck(placement=placement), PLACEMENTS[placement]
    assert config.roles == published.roles
    assert config.position == published.position
    for name in ("activation", "norm", "scale", "init"):
        assert config.resolved(name) == getattr(published, name)
    assert Bottleneck(placement=placement, activation="silu").resolved("activation") == "silu"


def test_a_norm_of_the_residual_stream_equals_a_second_layer_norm_on_it() -> None:
    """Parallel to an MLP, the cell reads LN_f(h) and still computes LN(h) exactly."""
    host, second = layer_norm(0), layer_norm(5)
    recovered = ResidualNorm(site(norm=host)).double()
    recovered.weight.data.copy_(second.weight.data)
    recovered.bias.data.copy_(second.bias.data)
    h = torch.randn(7, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    a, b = recovered(host(h)), second(h)
    assert_close(a, b, atol=1e-13, rtol=1e-12)
    cotangent = torch.randn_like(a)
    gradients = torch.autograd.grad(a, [h, recovered.weight, recovered.bias], cotangent)
    right = torch.autograd.grad(b, [h, second.weight, second.bias], cotangent)
    assert_close(gradients, right, atol=1e-12, rtol=1e-11)


def test_a_residual_norm_folded_into_the_small_weight_is_the_same_function() -> None:
    cell = build(Bottleneck(3, activation="gelu", scale=0.5))
    randomize(cell)
    assert isinstance(cell.norm, ResidualNorm)
    x = torch.randn(5, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    written_out = 0.5 * cell.up(cell.act(cell.down(cell.norm(x))))
    folded = cell(x)
    assert_close(folded, written_out, atol=1e-12, rtol=1e-12)
    learns = [x, *cell.parameters()]
    cotangent = torch.randn_like(folded)
    gradients = torch.autograd.grad(folded, learns, cotangent)
    right = torch.autograd.grad(written_out, learns, cotangent)
    assert_close(gradients, right, atol=1e-11, rtol=1e-11)


def test_a_new_residual_norm_standardises() -> None:
    host = layer_norm()
    h = torch.randn(7, WIDTH, dtype=torch.float64)
    expected = F.layer_norm(h, (WIDTH,), eps=1e-6)
    assert_close(ResidualNorm(site(norm=host)).double()(host(h)), expected)


def test_a_residual_norm_keeps_its_hosts_norm_but_does_not_train_it() -> None:
    host = layer_norm()
    norm = ResidualNorm(site(norm=host))
    assert sorted(norm.state_dict()) == ["bias", "host_bias", "host_weight", "weight"]
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    assert norm.host_weight.data_ptr() != host.weight.data_ptr()


def test_the_residual_stream_must_be_recoverable() -> None:
    with refused(
        TargetError, what="norm='residual' at 'b.mlp'", got="no LayerNorm that feeds the site"
    ):
        Bottleneck(norm="residual").build(site(), generator=gen())
    host = layer_norm()
    host.weight.data[[1, 4]] = 0
    with refused(
        TargetError, what="norm='residual' at 'b.mlp'", got="2 zero gains in the host's LayerNorm"
    ):
        Bottleneck().build(site(norm=host), generator=gen())
    Bottleneck(norm="layer").build(site(norm=host), generator=gen())


@pytest.mark.parametrize(
    ("norms", "kind"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm), ("none", nn.Identity)]
)
def test_without_a_layer_norm_before_the_site_the_norm_is_of_the_hosts_kind(
    norms: str, kind: type[nn.Module]
) -> None:
    bare_site = replace(site(), norms=norms)
    assert type(Bottleneck().build(bare_site, generator=gen()).norm) is kind
    # published without a norm, and settings of one's own, stay as they are
    after = replace(bare_site, position="sequential")
    assert type(Bottleneck(placement="pfeiffer").build(after, generator=gen()).norm) is nn.Identity
    assert type(Bottleneck(norm="layer").build(bare_site, generator=gen()).norm) is nn.LayerNorm


def test_dropout_is_on_the_bottleneck_and_only_while_training() -> None:
    cell = build(Bottleneck(500, norm="none", dropout=0.5))
    randomize(cell)
    cell.down.weight.data.zero_()
    cell.down.bias.data.fill_(1)
    cell.up.bias.data.zero_()
    cell.up.weight.data.fill_(1)
    x = torch.zeros(1, WIDTH, dtype=torch.float64)
    torch.manual_seed(1)
    # 500 units of gain 2 with probability 0.5, times the scale 0.1
    drawn = cell.train()(x)[0, 0].item() / 0.1
    assert drawn != 500
    assert abs(drawn - 500) < 120
    assert cell.eval()(x)[0, 0].item() == pytest.approx(50)


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}])
@pytest.mark.parametrize("shape", [(0, 5, WIDTH), (1, WIDTH), (2, 3, 3, WIDTH)])
def test_inputs_of_any_shape(settings: dict[str, float], shape: tuple[int, ...]) -> None:
    cell = build(Bottleneck(3, norm="none", **settings))
    assert cell(torch.randn(shape, dtype=torch.float64)).shape == (*shape[:-1], OUT)


def test_a_half_precision_input_is_cast_to_the_cells_dtype() -> None:
    host = layer_norm().bfloat16()
    cell = Bottleneck(3).build(site(norm=host), generator=gen())
    x = torch.randn(2, WIDTH, dtype=torch.bfloat16)
    assert cell(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert cell(x).dtype == torch.bfloat16


def test_learned_scales_start_at_one_and_learn() -> None:
    for scale, count in (("layer", 1), ("channel", OUT)):
        cell = build(Bottleneck(3, norm="none", scale=scale))
        assert isinstance(cell.scale, nn.Parameter)
        assert cell.scale.shape == (count,)
        assert (cell.scale == 1).all()
    assert "scale" not in dict(build(Bottleneck(3, norm="none")).named_parameters())


def test_the_generator_decides_the_start_and_nothing_else_moves() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (build(Bottleneck(3, "houlsby"), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.down.weight, b.down.weight)
    assert torch.equal(a.up.weight, b.up.weight)
    assert not torch.equal(a.down.weight, c.down.weight)


def test_a_cell_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        cell = Bottleneck(3, norm="layer").build(Site("b", WIDTH, WIDTH), generator=gen())
    assert all(p.is_meta for p in cell.parameters())


def test_a_cell_is_not_linear() -> None:
    cell = build(Bottleneck(3, norm="none"))
    assert cell.delta() is None
    assert cell.merged() is cell


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"bottleneck": 0}, "0"),
        ({"placement": "inside"}, "'inside'"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"norm": "batch"}, "'batch'"),
        ({"init": "ones"}, "'ones'"),
        ({"scale": "token"}, "'token'"),
        ({"dropout": 1.0}, "1.0"),
        ({"dropout": -0.1}, "-0.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], got: str) -> None:
    with refused(ConfigError, got=got):
        Bottleneck(**settings)  # pyright: ignore
