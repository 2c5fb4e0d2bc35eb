"""Fast Sparse ConvNets: sparse 1x1 convolutions in CHW at batch 1 (arXiv:1911.09723)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import Change, Plan, steps_of
from ..core.checks import one_of
from ..core.errors import ConfigError, FoldError, TargetError
from ..core.schema import check, setting
from ..kernels.chw import Coding, available
from ..kernels.chw.steps import BLOCKS, CODED_BLOCKS
from ..sparse.swap.chw import Form, choose_forms, lowered, net_seconds, rewritten
from ..sparse.swap.chw_codes import codings_of_clusters
from ..sparse.swap.chw_net import ChwNet
from ..sparse.swap.upcycle import check_unadapted


class ChwLayer(NamedTuple):
    """A layer of a compressed net: its density, and the block size with which it is stored.

    rows: of its blocks, 0 = dense.  measured: rows -> microseconds, where it was measured.
    """

    path: str
    density: float
    rows: int
    measured: Mapping[str, float]


class ChwReport(NamedTuple):
    """Parts of a compressed net: layers, clusters in CHW, layers left in torch, layout changes.

    clusters: the number of runs of layers that are one call each; left: paths of layers in torch.
    milliseconds: of a picture "before" and "after", where it was measured.
    """

    layers: tuple[ChwLayer, ...]
    clusters: int
    left: tuple[str, ...]
    layout_changes: int
    milliseconds: Mapping[str, float]


@dataclass(frozen=True)
class Chw(Change):
    """A convolutional net rewritten to CHW, with kernels that skip the zeros of 1x1 convolutions.

    y[co, p] = act(b[co] + sum over kept ci of w[co, ci] x[ci, p]), tile by tile of pixels.

    The net is traced; runs of layers that are known (stem and k x k, 1x1, depthwise, batch norm,
    ReLU, ReLU6, hardswish, SiLU, additions, squeeze and excitation, pooling, classifier) become one
    call, everything between them stays in torch. Batch norms are folded. Outputs equal the net's in
    evaluation, to 1e-4; zeros are taken where they are, so prune first.

    fast = intarsia.compress(net, intarsia.sparse.Chw(), example)   `chw_report(fast)` describes it
    Raises: ConfigError without an example, for several pictures unless they choose ranges, or where
    dense is faster, unless forced; TargetError for a net that cannot be traced, has no such layer,
    has adapters, or is not float32 on a CPU.
    Source: paper, section 3; XNNPACK's sparse convolutions; arXiv:1712.05877 for "int8". Not for
    training, nor for batches.
    """

    rows: int | None = setting(
        None,
        'The rows of a block that keeps the same columns, 1, 2 or 4 with "int8"; None = for '
        "each layer the fastest number here, a dense product among them, measured once and kept "
        "in the saved folder.",
        choices=BLOCKS,
    )
    force: bool = setting(
        False,
        "Rewrite the net also where it is slower then as a whole; several pictures go one by one.",
    )
    values: str = setting(
        "fp32",
        'The numbers of maps and weights: "fp32", or "int8", codes of 8 bits: AVX-512 with VNNI '
        "multiplies four inputs at a time, so that zeros save time where they come in fours "
        "(`SparseGPT(inputs=4)`) and a dense net is faster, too, also of k x k and in groups. The "
        "example is then some dozen pictures: they choose the ranges. Outputs move as by any "
        "rounding to 8 bits; other processors compute the same with AVX2 or plain C, less fast, "
        "and without a compiler torch does, slowly.",
        choices=("fp32", "int8"),
    )

    stores: ClassVar[str] = "all"
    rewires: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check each setting; blocks of codes have fewer sizes.  Raises: ConfigError."""
        check(self)
        if self.rows is not None and self.values == "int8":
            one_of("rows", self.rows, CODED_BLOCKS)

    @property
    def preserves(self) -> frozenset[str]:
        """The property that stays: the outputs, unless they are rounded."""
        return frozenset({"outputs"} if self.values == "fp32" else ())

    def forced(self) -> Chw:
        """Return the same with `force`."""
        return replace(self, force=True)

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Choose how each layer is stored, by timing on this machine; the host is unchanged.

        batches: the first one is an example of one picture, or the pictures that choose the ranges
        of codes. The plan has each layer's block size and milliseconds.
        Raises: ConfigError if the whole net would be slower, see the class.
        """
        _check(host)
        pictures = self._pictures(host, batches)
        picture = pictures[:1]
        graph, clusters = lowered(host, picture)
        on_codes = self.values == "int8"
        codings = codings_of_clusters(graph, clusters, pictures) if on_codes else []
        # Each layer's storage is measured on this machine: the fastest block size, or dense.
        forms = choose_forms(clusters, self.rows, codings)
        decided: dict[str, Any] = {
            "example": list(picture.shape),
            "whole": True,
            "forms": {name: list(form) for name, form in forms.items()},
            "codings": [[[value, *coding] for value, coding in c.items()] for c in codings],
            "milliseconds": {},
        }
        # Single layers may gain what changes of layout lose: the whole net is timed. On codes it is
        # timed without kernels, too, since torch is far slower on them.
        if not self.force and (on_codes or available()):
            net = rewritten(host, graph, clusters, forms, codings=codings)
            after = net_seconds(net, picture)
            times = {"before": net_seconds(host, picture), "after": after}
            decided["milliseconds"] = {name: round(1e3 * t, 3) for name, t in times.items()}
            if after >= times["before"]:
                subject, fix = "net in CHW", "Prune it first, or pass Chw(force=True)."
                if on_codes:
                    fix = (
                        "OpenVINO and onnxruntime are faster: intarsia export RUN --format onnx "
                        "--int8. Or pass Chw(force=True)."
                    )
                got = f"{1e3 * after:.2f} ms a picture"
                want = f"less than the {1e3 * times['before']:.2f} ms of the net as it is"
                raise ConfigError(subject, got=got, want=want, fix=fix)
        return Plan(self, seed, decided)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Return a net in CHW, which shares the modules that stay in torch; `host` is unchanged."""
        decided = plan.decided
        # The graph is traced with the shape of the planned example, so that names are the same.
        picture = torch.zeros([int(side) for side in decided["example"]])
        # nets that were saved before convolutions of k x k were on codes keep their steps
        graph, clusters = lowered(host, picture, decided.get("whole", False))
        forms = {name: Form(*form) for name, form in decided["forms"].items()}
        codings = [
            {value: Coding(scale, zero) for value, scale, zero in cluster}
            for cluster in decided["codings"]
        ]
        return rewritten(host, graph, clusters, forms, self.force, codings)

    def fold(self, host: nn.Module) -> nn.Module:
        """Raise FoldError, always: batch norms were merged into the packed weights for good."""
        want = "the net before it was compressed"
        fix = "Keep that one: it has the same outputs."
        raise FoldError("net in CHW", got="packed weights", want=want, fix=fix)

    def _pictures(self, host: nn.Module, batches: Iterable[Any]) -> Tensor:
        """Return the example picture, or those that choose ranges, (N, C, H, W) float32."""
        example: Any = next(iter(batches), None)
        # A batch of a data set is (pictures, labels).
        example = example[0] if isinstance(example, (tuple, list)) else example
        pretrained = getattr(host, "pretrained_cfg", None)
        if example is None and isinstance(pretrained, dict) and self.values == "fp32":
            example = torch.zeros(1, *pretrained["input_size"])
        if not isinstance(example, Tensor) or example.dim() != 4 or not len(example):
            got = "none" if example is None else f"a {type(example).__name__}"
            got = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else got
            want, fix = (
                "one picture (1, channels, height, width)",
                "Pass torch.randn(1, 3, 224, 224).",
            )
            if self.values == "int8":
                want, fix = "pictures (n, channels, height, width)", "Pass a hundred of your own."
            raise ConfigError("example", got=got, want=want, fix=fix)
        if self.values == "int8":
            return example.detach().float()
        # With several pictures dense kernels share the loaded weights and win.
        if len(example) > 1 and not self.force:
            got, want = f"{len(example)} pictures", "one: of several, dense kernels are faster"
            fix = "Pass one, or Chw(force=True), which does them one by one."
            raise ConfigError("example", got=got, want=want, fix=fix)
        return example[:1].detach().float()


def _check(host: nn.Module) -> None:
    """Refuse a net with adapters, one in CHW already, or weights that are not float32 on a CPU."""
    check_unadapted(host)
    if isinstance(host, ChwNet):
        fix = "Use it, or compress the net it was made of."
        raise TargetError("net", got="one in CHW already", want="a plain one", fix=fix)
    for name, parameter in host.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            got, want = f"{parameter.dtype} on {parameter.device}", "float32 on the CPU"
            raise TargetError(f"weight {name!r}", got=got, want=want, fix="net.float().cpu()")


def chw_report(net: nn.Module) -> ChwReport:
    """Describe a compressed net layer by layer: densities, block sizes, and measured times.

    net: the result of `compress` with `Chw`.  Raises: TargetError for any other net.
    """
    # The newest step counts, if a net was compressed more than once.
    plans = [s.plan for s in steps_of(net) if isinstance(s.plan.change, Chw)]
    if not plans or not isinstance(net, ChwNet):
        got, fix = (
            type(net).__name__,
            "Call intarsia.compress(net, intarsia.sparse.Chw(), example).",
        )
        raise TargetError("net", got=got, want="one in CHW", fix=fix)
    decided = plans[-1].decided
    forms = {name: Form(*form) for name, form in decided["forms"].items()}
    layers = tuple(
        ChwLayer(name.rpartition("@")[0], form.density, form.rows, form.measured)
        for name, form in forms.items()
    )
    times = decided["milliseconds"]
    return ChwReport(layers, len(net.clusters), net.left, net.layout_changes, times)


CARD = Card(
    "fast_convnets",
    kind="change",
    config=Chw,
    paper=Paper("1911.09723", 2019, "Fast Sparse ConvNets"),
    summary="A convolutional net runs in CHW at batch 1, and skips the zeros of 1x1 convolutions.",
    family="sparse inference",
    names=("Fast Sparse ConvNets", "chw"),
    tiny={"rows": 2, "force": True},
)
