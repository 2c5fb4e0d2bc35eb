"""Products of one row with matrices that are in no cache, by ours and by other libraries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..kit.arms import threads

SIDE = 4096
ROTATED = 192 * 2**20  # bytes of copies that take turns: more than any cache
REPEATS = 15
GROUP = 32  # of the others' int4
Run = Callable[[], object]


def rotating(make: Callable[[], Run], size: int) -> Run:
    """Build copies of a product that are called in turn, so that no cache holds the weight.

    make: builds one; size: bytes of its weight. Returns a function that calls the next copy.
    """
    runs = [make() for _ in range(max(2, ROTATED // size))]
    turn = 0

    def run() -> object:
        nonlocal turn
        turn = (turn + 1) % len(runs)
        return runs[turn]()

    return run


@torch.inference_mode()
@threads(1)
def seconds_of(runs: Mapping[str, Run], repeats: int = REPEATS) -> dict[str, float]:
    """Return the median CPU time of each function, on one thread.

    runs: name -> function; repeats: in each all functions are called in turn, so that a busy
      machine slows all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            for _ in range(3):
                started = time.thread_time()
                run()
                if repeat:
                    # the first repeat is a warm-up
                    times[name].append(time.thread_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def int4_torch(weight: Tensor, x: Tensor) -> tuple[Callable[[], Run], int]:
    """Prepare torch's own int4 product of a weight and a row, on the CPU.

    weight: (out, in); x: (1, in). Returns a function that builds a copy of the product, and the
      bytes of its weight.
    """
    ops: Any = torch.ops.aten
    groups = weight.view(len(weight), -1, GROUP)
    # asymmetric: 16 levels from the least to the largest of each group
    low = groups.amin(2)
    scale = (groups.amax(2) - low) / 15
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).int()
    packed = ops._convert_weight_to_int4pack_for_cpu(codes.view(weight.shape), 1)
    # scale and offset of each group, in the kernel's layout
    both = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
    inputs = x.bfloat16()

    def make() -> Run:
        codes_copy, parts = packed.clone(), both.clone()
        return lambda: ops._weight_int4pack_mm_for_cpu(inputs, codes_copy, GROUP, parts)

    return make, weight.numel() // 2 + both.nbytes


def int4_onnxruntime(weight: Tensor, x: Tensor, accuracy: int) -> tuple[Callable[[], Run], int]:
    """Prepare ONNX Runtime's int4 product (MatMulNBits) of a weight and a row.

    weight: (out, in); x: (1, in); accuracy: the operator's level, 4 rounds its inputs to int8.
      Returns a function that builds a copy of the product, and the bytes of its weight.
    Raises: ImportError without onnx and onnxruntime.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, width = weight.shape
    groups = weight.view(rows, -1, GROUP)
    low = groups.amin(2)
    scale = (groups.amax(2) - low) / 15
    # the level that stands for 0, a whole number
    zero = (-low / scale).round().clamp(0, 15)
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, 15).to(torch.uint8)
    # two codes in each byte
    parts = {
        "B": codes[..., 0::2] | codes[..., 1::2] << 4,
        "s": scale.flatten(),
        "z": (zero[:, 0::2].to(torch.uint8) | zero[:, 1::2].to(torch.uint8) << 4).flatten(),
    }
    attributes: dict[str, Any] = {
        "K": width,
        "N": rows,
        "bits": 4,
        "block_size": GROUP,
        "accuracy_level": accuracy,
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "s", "z"], ["y"], domain="com.microsoft", **attributes
    )
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s])
        for n, s in (("x", width), ("y", rows))
    ]
    tensors = [numpy_helper.from_array(t.numpy(), n) for n, t in parts.items()]
    # a graph of this one operator
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    inputs = {"x": x.numpy()}

    def make() -> Run:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, inputs)

    return make, weight.numel() // 2 + 4 * scale.numel()
