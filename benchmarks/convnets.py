"""Six CNNs in int8 at batch 1: ours next to OpenVINO's int8 and bfloat16 and onnxruntime's int8.

    python benchmarks/convnets.py --write         # the page docs/benchmarks/convnets.md
    python benchmarks/convnets.py --only resnet18

EfficientNet-Lite0 has its pretrained weights and pictures that judge; the others have the weights
that timm draws, for time alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from frame import markdown, parser, publish, read
from torch import Tensor, nn

from intarsia.kernels import native
from intarsia.methods.fast_convnets import Chw
from intarsia.sparse.swap.compress import compress
from intarsia_lab.materials.convnet_times import dense_runtimes, int8_runtimes, interleaved
from intarsia_lab.materials.lite0 import SIDE, lite0
from intarsia_lab.materials.lite0_pictures import pictures
from intarsia_lab.materials.unlabelled import whole

PRETRAINED = "efficientnet_lite0"
RESNETS = ("resnet18", "resnet50")  # timm draws some of their norms as 0: no block would count
NETS = (PRETRAINED, "mobilenetv3_large_100", "efficientnet_b0", *RESNETS, "regnety_004")
CALIBRATION = 16  # pictures for int8
JUDGES = 100  # pictures on which classes are compared
OURS, RIVALS = "intarsia int8", ("OpenVINO int8", "OpenVINO bf16", "onnxruntime int8")
ABOUT = f"""\
One picture of {SIDE} x {SIDE} pixels, one thread, all runtimes in turns, least CPU time of a
picture, in milliseconds. *Of the best*: of the fastest of OpenVINO in int8 and in bfloat16 and
onnxruntime in int8. All of int8 is calibrated on the same {CALIBRATION} pictures; elsewhere it is
onnxruntime's static quantisation. *Moves*: distance of the logits from float32's, relative to
them, of ours and of the best. *Agrees*: percent of {JUDGES} pictures that judge with the same first
class as float32, of ours and of the best, where weights are real. Weights that timm draws stand for
the time of a shape alone, and pictures for them are noise.

*intarsia int8* is `Chw(values="int8")`. Where another runtime is faster a line says so; its file
is made by `intarsia export RUN --format onnx --int8`."""
Run = Callable[[Tensor], Any]


class Timed(NamedTuple):
    """A net in each runtime: milliseconds, distance of logits, agreement in percent."""

    net: str
    ms: Mapping[str, float]
    moves: Mapping[str, float]
    agrees: Mapping[str, float]

    @property
    def best(self) -> str:
        """The fastest of the rivals."""
        return min(RIVALS, key=lambda name: self.ms[name])

    @property
    def share(self) -> float:
        """Our time of the best rival's."""
        return self.ms[OURS] / self.ms[self.best]


def drawn_net(name: str) -> nn.Module:
    """A net of timm with the weights that it draws."""
    torch.manual_seed(0)
    some: dict[str, Any] = (
        {"zero_init_last": False} if name in RESNETS or name.startswith("regnet") else {}
    )
    return timm.create_model(name, **some).eval()


def answers(run: Run, some: Tensor) -> Tensor:
    """The logits of each picture, (n, classes)."""
    return torch.cat([torch.as_tensor(np.asarray(run(x))) for x in some.split(1)])


@torch.no_grad()
def timed(name: str, reps: int) -> Timed:
    """Measure a net in each runtime, and compare its logits with float32's."""
    judge = calibration = torch.randn(
        CALIBRATION, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
    )
    if name == PRETRAINED:
        fit, _, judges = pictures()
        net, calibration = lite0(), whole(fit[:CALIBRATION])
        judge = torch.cat([some.pixels for some in judges.values()])
        judge = judge[torch.randperm(len(judge), generator=torch.Generator().manual_seed(0))]
    else:
        net = drawn_net(name)
    judge, picture = judge[:JUDGES], judge[:1]
    packed = compress(copy.deepcopy(net), Chw(values="int8"), calibration, force=True)
    runs = {OURS: packed, **int8_runtimes(net, calibration, picture)}
    runs |= {k: run for k, run in dense_runtimes(net, picture).items() if k in RIVALS}
    seconds = interleaved({k: partial(run, picture) for k, run in runs.items()}, reps)
    want = answers(net, judge)
    got = {k: answers(run, judge) for k, run in runs.items()}
    moves = {k: float((y - want).norm() / want.norm()) for k, y in got.items()}
    same = {k: 100 * float((y.argmax(1) == want.argmax(1)).float().mean()) for k, y in got.items()}
    return Timed(
        name,
        {k: 1e3 * t for k, t in seconds.items()},
        moves,
        same if name == PRETRAINED else {},
    )


def table_of(nets: list[Timed]) -> list[str]:
    """The page's table."""
    head = ("net", "weights", OURS, *RIVALS, "of the best", "moves", "agrees")
    rows: list[list[str]] = []
    for net in nets:
        agrees = [f"{net.agrees[k]:.0f}" for k in (OURS, net.best)] if net.agrees else ["-"]
        rows.append(
            [
                net.net,
                "pretrained" if net.agrees else "drawn",
                *(f"{net.ms[k]:.2f}" for k in (OURS, *RIVALS)),
                f"{net.share:.2f}",
                ", ".join(f"{net.moves[k]:.3f}" for k in (OURS, net.best)),
                ", ".join(agrees),
            ]
        )
    return markdown(head, rows)


def slower(nets: list[Timed]) -> list[str]:
    """A line for each net that another runtime computes faster."""
    return [
        f"- {net.net}: {net.best} takes {1 / net.share:.2f} of our time: export it."
        for net in nets
        if net.share > 1
    ]


def main() -> None:
    options = parser(__doc__, threads=1, reps=25)
    options.add_argument("--only", choices=NETS, help="one net")
    args = read(options)
    native.require()
    nets: list[Timed] = []
    for name in [args.only] if args.only else NETS:
        nets.append(timed(name, args.reps))
        print("\n".join(table_of(nets[-1:])), flush=True)
    text = f"Kernels built for {native.instructions()}."
    body = [text, "", *table_of(nets), "", *slower(nets)]
    publish("Six CNNs in int8 next to other runtimes", ABOUT, body, args)


if __name__ == "__main__":
    main()
