"""SparseByteNN: what an order of channels keeps, and the net's time (arXiv:2310.19509)."""

from __future__ import annotations

from functools import partial

from ..kit import Effect, Study
from ..materials.convnet_times import whole

STUDIES = (
    Study(
        "sparse-bytenn",
        system="SparseByteNN",
        arxiv="2310.19509",
        question="Is a net sparse in blocks of four rows faster than dense?",
        effect=Effect(
            "1.27 times as fast as dense, -.224 % of accuracy",
            "MobileNet-v1, 30 % zeros, Snapdragon 855",
            "abstract",
            sign=1,
            values=(1.27,),
            null=1.0,
        ),
        work="EfficientNet-Lite0 at batch 1 on one thread, float32, 30 % zeros in its 1x1 layers",
        baseline="the fastest of OpenVINO and onnxruntime in float32, dense",
        unit="times as fast",
        differs="No accuracy is held; the dense net in OpenVINO's bfloat16 is faster than both.",
        # as many weights in no blocks: each takes about 1.6 times as long as a dense one
        measure=partial(whole, forms=[(4, 0.7)], losing=(1, 0.7)),
        # a time differs by 4 % between runs on a machine that does other work
        seeds=tuple(range(9, 15)),
        minutes=8,
    ),
)
