"""SparseByteNN: what an order of channels keeps, and the net's time (arXiv:2310.19509)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.data.backbones import backbone
from intarsia.data.photographs import photographs
from intarsia.folders.verbs import apply
from intarsia.hosts.anatomy.channel_groups import channels_of
from intarsia.methods.sparse_bytenn import SparseByteNn
from intarsia.partitions import keep_row_blocks

from ..kit import COUNTED, TIMED, Effect, Report, Result, Study
from ..kit.arms import result_of
from ..materials.convnet_times import whole

# the paper's blocks of four outputs at 30 % of zeros
PICTURES, SIDE, ROWS, DENSITY = 16, 224, 4, 0.7


def crops(seed: int) -> Tensor:
    """Return 16 random squares of photographs as Lite0 reads them, (16, 3, 224, 224), -1 to 1."""
    draw = torch.Generator().manual_seed(seed)
    large_enough = [p for p in photographs() if min(p.pixels.shape[:2]) >= SIDE]
    squares: list[Tensor] = []
    for _ in range(PICTURES):
        pixels = torch.as_tensor(
            large_enough[int(torch.randint(len(large_enough), (), generator=draw))].pixels
        )
        top, first_column = (
            int(torch.randint(n - SIDE + 1, (), generator=draw)) for n in pixels.shape[:2]
        )
        square = (
            pixels[top : top + SIDE, first_column : first_column + SIDE].permute(2, 0, 1).float()
        )
        # 0 ... 255 to -1 ... 1
        squares.append(square / 127.5 - 1)
    return torch.stack(squares)


@torch.no_grad()
def layer_scores(
    net: nn.Module, paths: tuple[str, ...], pictures: Tensor
) -> dict[str, tuple[float, float]]:
    """Prune each layer to 70 % of its blocks; return what stays and what the output loses.

    net: the network, which is left as it is; paths: of its layers; pictures: (n, 3, 224, 224). For
    each path the share of the L1 norm of the weights that stays, and the energy of the removed
    blocks' output over the energy of the output.
    """
    scores: dict[str, tuple[float, float]] = {}

    def hook(path: str) -> Any:
        """Return a forward hook that measures what pruning would do to the layer at `path`."""

        def measure(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            """Add to `scores` the share of weight that pruning keeps, and the output's error."""
            weight = layer.weight.detach()
            mask = keep_row_blocks({"w": weight.abs()}, {"w": DENSITY}, ROWS).mask("w", 0)
            # what the removed blocks contributed to the output, in its own energy
            lost = copy.copy(layer)
            lost._forward_hooks = {}
            lost._parameters = {"weight": nn.Parameter(weight * ~mask), "bias": None}
            error = lost(inputs[0]).square().sum() / output.square().sum().clamp_min(1e-12)
            kept_share = (weight.abs() * mask).sum() / weight.abs().sum()
            scores[path] = (float(kept_share), float(error))

        return measure

    hooks = [net.get_submodule(p).register_forward_hook(hook(p)) for p in paths]
    try:
        net.eval()(pictures)
    finally:
        for handle in hooks:
            handle.remove()
    return scores


@lru_cache
def nets() -> tuple[nn.Module, nn.Module]:
    """Return EfficientNet-Lite0 as it was trained, and with its channels rearranged.

    Rearranging groups output channels so that blocks of four rows hold similar weights.
    """
    # rearranged before pruning, so that the dense outputs are equal
    plain = backbone("efficientnet-lite0", classes=10).eval()
    return plain, apply(copy.deepcopy(plain), SparseByteNn(DENSITY, ROWS))


def rearranged(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the share of layers that block pruning hurts less after channels were rearranged.

    There, blocks keep more of the L1 norm and the output error is lower. The network is
    EfficientNet-Lite0 on crops of photographs, other ones with each seed.
    """
    plain, moved = nets()
    paths = channels_of(plain).layers
    values: list[float] = []
    rows: list[Mapping[str, str]] = []
    for seed in seeds:
        pictures = crops(seed)
        before, after = (layer_scores(net, paths, pictures) for net in (plain, moved))
        # both at once: more of the norm stays, and less of the output is lost
        better = [after[p][0] > before[p][0] and after[p][1] < before[p][1] for p in paths]
        values.append(sum(better) / len(paths))
        rows += [
            {"seed": str(seed), "layer": p, "L1 kept": f"{before[p][0]:.3f} -> {after[p][0]:.3f}",
             "error": f"{before[p][1]:.4f} -> {after[p][1]:.4f}"}
            for p in paths
        ]  # fmt: skip
        report(f"seed {seed}: {values[-1]:.3f} of {len(paths)} layers")
    note = (
        f"{PICTURES} crops of photographs a seed; blocks of {ROWS} rows at a density of {DENSITY}."
    )
    return result_of(values, rows, note)


study = partial(Study, sense=">=", minutes=3)

CLAIMS = (
    study(
        "sparse-bytenn-rearranged",
        sentence="In EfficientNet-Lite0 with its channels rearranged, blocks of four rows keep "
        "more of the weights' L1 norm and change the outputs less (SparseByteNN, "
        "arXiv:2310.19509).",
        baseline="the same blocks on the channels as they are; the share of layers that are better "
        "in both",
        target=0.95,
        control=COUNTED,
        measure=rearranged,
    ),
    study(
        "sparse-bytenn",
        system="SparseByteNN",
        unit="times as fast",
        scale="The paper's own processor, a Snapdragon 855, with its kernels.",
        effect=Effect(
            1.27, "abstract: MobileNet-v1, 30 % of its weights 0, Snapdragon 855", null=1.0
        ),
        work="EfficientNet-Lite0, one thread",
        sentence="EfficientNet-Lite0 with seven tenths of its 1x1 weights left, in blocks of four "
        "rows, runs faster at batch 1 than its dense net in the fastest dense runtime in float32, "
        "with no accuracy held; the dense net in OpenVINO's bfloat16 is faster than both "
        "(SparseByteNN, arXiv:2310.19509).",
        baseline="the fastest of OpenVINO and onnxruntime in float32; times as fast",
        target=1.0,
        control=TIMED,
        # a time differs by 4 % between runs on a machine that does other work
        seeds=tuple(range(9, 15)),
        # as many weights in no blocks: each takes about 1.6 times as long as a dense one
        measure=partial(whole, forms=[(4, 0.7)], losing=(1, 0.7)),
    ),
)
