"""Nets in CHW in codes of 8 bits: near the dense net, the same in torch, saved, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intarsia
from intarsia import compress
from intarsia.core.errors import ConfigError
from intarsia.kernels import native
from intarsia.sparse import Chw, chw_report
from intarsia.sparse.swap.chw import lowered
from intarsia.sparse.swap.chw_cluster import ChwCluster
from intarsia.sparse.swap.chw_codes import coded_values, codings_of_clusters

from ..refusals import refused
from .test_fast_convnets import Block, picture, pruned


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish])
@pytest.mark.parametrize("unknown", [False, True])
@torch.no_grad()
def test_codes_are_near_the_numbers(act: type[nn.Module], unknown: bool) -> None:
    net, pictures = pruned(Block(act, unknown), 0.8), picture(32, count=8)
    fast = compress(net, Chw(values="int8", force=True), pictures)
    want = net(pictures)
    assert relative(fast(pictures), want) < 0.05
    # one scale for all numbers costs something: codes are really there
    assert relative(fast(pictures), want) > 1e-4
    clusters = [m for m in fast.modules() if isinstance(m, ChwCluster)]
    kinds = {step.kind for cluster in clusters for step in cluster.steps if step.coded}
    assert {"spmm", "depthwise"} <= kinds
    # sizes that no picture had
    assert relative(fast(picture(23)), net(picture(23))) < 0.2


@torch.no_grad()
def test_torch_computes_what_the_kernels_do() -> None:
    net, pictures = pruned(Block(nn.ReLU6), 0.8), picture(32, count=4)
    fast = compress(net, Chw(values="int8", rows=4, force=True), pictures)
    with native.using("off"):
        want = fast(pictures)
    for build in ("native", "avx2", "portable"):
        with native.using(build):
            assert relative(fast(pictures), want) < 0.01


@torch.no_grad()
def test_it_is_saved_and_loaded_into_the_dense_net(tmp_path: Path) -> None:
    net, pictures = pruned(Block(nn.ReLU6)), picture(32, count=4)
    fast = compress(net, Chw(values="int8", force=True), pictures)
    intarsia.save(fast, tmp_path / "fast")
    again = intarsia.load(Block(nn.ReLU6), tmp_path / "fast")
    assert torch.equal(again(pictures), fast(pictures))
    assert chw_report(again) == chw_report(fast)


def test_what_others_read_stays_a_number() -> None:
    """Squeeze and excitation multiplies numbers, and torch reads the cluster's result."""
    graph, clusters = lowered(pruned(Block(nn.ReLU6)), picture())
    (cluster,) = clusters
    coded = coded_values(cluster)
    layers = {layer.name: layer for layer in cluster.layers}
    (scaled,) = [layer for layer in cluster.layers if layer.kind == "scale"]
    # the stem's result is added to later, by a step that reads codes and numbers alike
    assert layers["stem.0"].dst in coded and layers["expand.0"].dst in coded
    assert layers["depth"].dst not in coded and scaled.dst in coded
    assert not coded & {*cluster.outputs().values()}
    (codings,) = codings_of_clusters(graph, clusters, picture(32, count=3))
    assert codings.keys() == coded
    # behind a ReLU6 no number is below 0 or above 6
    coding = codings[layers["stem.0"].dst]
    assert coding.zero == 0 and coding.scale <= 6 / 255


@torch.no_grad()
def test_a_range_is_that_of_all_pictures() -> None:
    graph, clusters = lowered(pruned(Block(nn.Hardswish)), picture())
    pictures = picture(32, count=40)
    (all_together,) = codings_of_clusters(graph, clusters, pictures)
    one_by_one = [codings_of_clusters(graph, clusters, x)[0] for x in pictures.split(1)]
    for value, coding in all_together.items():
        highest = max((255 - c[value].zero) * c[value].scale for c in one_by_one)
        assert abs((255 - coding.zero) * coding.scale - highest) < 1.5 * coding.scale


def test_the_net_is_timed_where_torch_computes_on_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2.0, 1.0])  # after, before
    monkeypatch.setattr("intarsia.methods.fast_convnets.net_seconds", lambda *_: next(times))
    net, pictures = pruned(Block(nn.ReLU6)), picture(32, count=2)
    with native.using("off"), refused(ConfigError, what="net in CHW"):
        compress(net, Chw(values="int8"), pictures)


def test_what_cannot_be_is_refused() -> None:
    net = pruned(Block(nn.ReLU6))
    with refused(ConfigError, what="values"):
        Chw(values="int4")
    with refused(ConfigError, what="rows"):
        Chw(rows=8, values="int8")
    with refused(ConfigError, what="example", got="none"):
        compress(net, Chw(values="int8", force=True))
