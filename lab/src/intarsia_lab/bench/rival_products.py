"""Products of one row with a dense weight of 8 or 4 bits, by other libraries.

Each library gets all copies of the weight in one graph, as a model has its layers: what a call of
its runtime takes is then shared by them. Where a library has several settings for the same bits,
the fastest one on this machine is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kit.openvino_core import openvino_core
from .ggml_products import best_seconds, ggml_products

GROUP = 32  # weights of int4 that share a scale
Call = Callable[[], object]


@dataclass(frozen=True)
class RivalProducts:
    """Products of one row with copies of a weight.

    calls: which compute all of them; bytes: of one copy; output: of one product, (1, out).
    """

    calls: Sequence[Call]
    bytes: int
    output: Tensor


Maker = Callable[[Tensor, Tensor, int], RivalProducts]


def torch_int8(weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare torch's product with 8-bit weights, a scale a row.

    weight: (out, in); x: (1, in); copies: of the codes, used by turns.
    """
    product: Any = torch.ops.aten._weight_int8pack_mm
    codes, scales, half = *_int8(weight), x.bfloat16()
    scales = scales.flatten().bfloat16()
    calls = [partial(product, half, codes.clone(), scales) for _ in range(copies)]
    return RivalProducts(calls, codes.nbytes + scales.nbytes, product(half, codes, scales))


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight to int8 codes (out, in), with one scale for each row, (out, 1)."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def _int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise a weight to 4 bits by groups of 32 inputs.

    weight: (out, in). Returns codes 0 to 15 (out, in), and the scale and the least value of each
    group, (out, in / 32) both.
    """
    groups = weight.unflatten(1, (-1, GROUP))
    least = groups.amin(2)
    scale = ((groups.amax(2) - least) / 15).clamp(min=1e-9)
    codes = ((groups - least[..., None]) / scale[..., None]).round().clamp(0, 15)
    return codes.flatten(1).int(), scale, least


def torch_int4(weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare torch's product with 4-bit weights in groups of 32.

    weight: (out, in); x: (1, in); copies: of the codes, used by turns.
    """
    ops: Any = torch.ops.aten
    codes, scale, least = _int4(weight)
    packed = ops._convert_weight_to_int4pack_for_cpu(codes, 1)
    # torch's codes are centred at 8: the zero point becomes least + 8 scale
    both = torch.stack([scale, least + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
    half, product = x.bfloat16(), ops._weight_int4pack_mm_for_cpu
    calls = [partial(product, half, packed.clone(), GROUP, both.clone()) for _ in range(copies)]
    output = product(half, packed, GROUP, both)
    return RivalProducts(calls, weight.numel() // 2 + both.nbytes, output)


def torchao_products(bits: int, weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare torchao's weight-only layers of 8 or 4 bits, compiled by torch.

    bits: 8 or 4; weight: (out, in); x: (1, in); copies: layers in one compiled function.

    Raises: ImportError without torchao.
    """
    import torchao.prototype.quantization.int4 as int4  # pyright: ignore[reportMissingImports]
    import torchao.quantization as ao  # pyright: ignore[reportMissingImports]

    config: Any = (
        ao.Int8WeightOnlyConfig() if bits == 8 else int4.PrototypeInt4WeightOnlyConfig(GROUP)
    )
    layers: Any = nn.ModuleList(
        nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
        for _ in range(copies)
    )
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.weight.copy_(weight.roll(i, 0))  # equal ones would be kept once
    ao.quantize_(layers, config)
    half = x.bfloat16()
    # the fastest of torch's settings; its search among kernels does nothing for int8
    options: Any = {"cpp_wrapper": True} | dict.fromkeys(("max_autotune", "freezing"), bits == 4)
    run: Any = torch.compile(lambda row: [layer(row) for layer in layers], options=options)
    with torch.inference_mode():
        output = run(half)[0].clone()
    groups = 1 if bits == 8 else weight.shape[1] // GROUP
    scales = weight.shape[0] * groups * (2 if bits == 8 else 4)
    return RivalProducts([partial(run, half)], weight.numel() * bits // 8 + scales, output)


def onnxruntime_products(bits: int, weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare ONNX Runtime's MatMulNBits with inputs in int8, groups of 32.

    bits: 8 or 4; weight: (out, in); x: (1, in); copies: operations of one session.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    out, width = weight.shape
    parts = _nbits(bits, weight)
    settings: Any = {"K": width, "N": out, "bits": bits, "block_size": GROUP, "accuracy_level": 4}
    nodes = [
        helper.make_node(
            "MatMulNBits",
            ["x", *(f"{name}{i}" for name in parts)],
            [f"y{i}"],
            domain="com.microsoft",
            **settings,
        )
        for i in range(copies)
    ]
    # no two weights are equal: a library must not compute one product instead of all
    weights = [
        numpy_helper.from_array(part.roll(i, 0).contiguous().numpy(), f"{name}{i}")
        for name, part in parts.items()
        for i in range(copies)
    ]
    row = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])
    outputs = [
        helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, out]) for i in range(copies)
    ]
    graph = helper.make_graph(nodes, "products", [row], outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    run = partial(session.run, None, {"x": x.numpy()})
    return RivalProducts([run], sum(p.nbytes for p in parts.values()), torch.from_numpy(run()[0]))


def _nbits(bits: int, weight: Tensor) -> Mapping[str, Tensor]:
    """Return codes, scales and zero points of a weight in the layout of MatMulNBits.

    bits: 8 or 4; weight: (out, in), in groups of 32 inputs.
    """
    out, width = weight.shape
    blocks = width // GROUP
    if bits == 8:
        groups = weight.unflatten(1, (-1, GROUP))
        scale = (groups.abs().amax(2) / 127).clamp(min=1e-9)
        codes = (groups / scale[..., None]).round() + 128
        # without zero points, codes are centred at 128
        return {"B": codes.to(torch.uint8), "s": scale}
    codes, scale, least = _int4(weight)
    zeros = (-least / scale).round().clamp(0, 15)
    # two codes in a byte, the first one in the low half; zero points likewise
    pairs = codes.view(out, blocks, GROUP // 2, 2).to(torch.uint8)
    even = torch.nn.functional.pad(zeros.to(torch.uint8), (0, blocks % 2)).view(out, -1, 2)
    return {
        "B": pairs[..., 0] | pairs[..., 1] << 4,
        "s": scale,
        "z": even[..., 0] | even[..., 1] << 4,
    }


def openvino_products(bits: int, weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare OpenVINO's product with compressed weights, as nncf writes them into a model.

    bits: 8, a scale a row, or 4, in groups of 32; weight: (out, in); x: (1, in); copies: layers of
    one model. Inputs are rounded to int8 by groups of 32, or not at all, and computed with in
    float32 or bfloat16: the fastest of these counts. A setting that the processor, or the limit
    that ONEDNN_MAX_CPU_ISA sets, does not allow is passed over.

    Raises: RuntimeError of OpenVINO if it allows none.
    """
    import openvino

    model, size = _openvino_model(bits, weight, copies)
    best: tuple[float, Any] | None = None
    refused: RuntimeError | None = None
    # 0: inputs are not rounded; on processors with AMX, bf16 is OpenVINO's own choice
    for group, precision in itertools.product((GROUP, 0), ("f32", "bf16")):
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "INFERENCE_PRECISION_HINT": precision,
        }
        try:
            request = openvino_core().compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            refused = error
            continue
        request.set_input_tensor(openvino.Tensor(x.contiguous().numpy()))
        request.infer()
        seconds = best_seconds(request.infer)
        if best is None or seconds < best[0]:
            best = seconds, request
    if best is None:
        assert refused is not None
        raise refused
    request = best[1]
    output = torch.from_numpy(request.get_output_tensor(0).data.copy())
    return RivalProducts([request.infer], size, output)


def _openvino_model(bits: int, weight: Tensor, copies: int) -> tuple[Any, int]:
    """Build a model of products with compressed weights; also the bytes of one weight.

    bits: 8 or 4; weight: (out, in); copies: of the product, each with constants of its own.
    """
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    out, width = weight.shape
    if bits == 8:
        codes, scale = _int8(weight)
        values, kind, zeros = codes.numpy(), openvino.Type.i8, None
        size = codes.nbytes + 2 * out
    else:
        nibbles, scale, least = _int4(weight)
        values, kind = nibbles.view(out, -1, GROUP).to(torch.uint8).numpy(), openvino.Type.u4
        zeros = (-least / scale).round().clamp(0, 15)[..., None].to(torch.uint8).numpy()
        scale = scale[..., None]
        size = weight.numel() // 2 + scale.numel() * 5 // 2
    row = ops.parameter([1, width], np.float32)
    products: list[Any] = []
    for i in range(copies):
        # no two weights are equal: one product must not be computed instead of all
        decoded = ops.convert(_openvino_constant(np.roll(values, i, 0), kind), np.float16)
        if zeros is not None:
            lowest = ops.convert(_openvino_constant(np.roll(zeros, i, 0), kind), np.float16)
            decoded = ops.subtract(decoded, lowest)
        decoded = ops.multiply(decoded, ops.constant(scale.half().roll(i, 0).numpy()))
        if zeros is not None:
            decoded = ops.reshape(decoded, np.array([out, width]), False)
        products.append(ops.matmul(row, ops.convert(decoded, np.float32), False, True))
    # its stubs want another list than its code takes
    return openvino.Model(products, [row], "products"), size  # pyright: ignore


def _openvino_constant(values: Any, kind: Any) -> Any:
    """Return a constant of OpenVINO with codes, two in a byte for 4 bits."""
    import openvino
    from openvino import opset13 as ops

    if kind != openvino.Type.u4:
        return ops.constant(values)
    flat = values.reshape(-1)
    tensor = openvino.Tensor(kind, openvino.Shape(values.shape))  # with memory of its own
    tensor.data[:] = (flat[0::2] | flat[1::2] << 4).reshape(tensor.data.shape)
    return ops.constant(tensor)


def _of_ggml(type: str, weight: Tensor, x: Tensor, copies: int) -> RivalProducts:
    """Prepare ggml's products, see `ggml_products`."""
    run, size, output = ggml_products(type, weight, x, copies)
    return RivalProducts([run], size, output)


RIVALS: Mapping[str, Maker] = {
    "torch int8": torch_int8,
    "torch int4": torch_int4,
    "torchao int8": partial(torchao_products, 8),
    "torchao int4": partial(torchao_products, 4),
    "onnxruntime int8": partial(onnxruntime_products, 8),
    "onnxruntime int4": partial(onnxruntime_products, 4),
    "OpenVINO int8": partial(openvino_products, 8),
    "OpenVINO int4": partial(openvino_products, 4),
    "llama.cpp Q8_0": partial(_of_ggml, "Q8_0"),
    "llama.cpp Q4_0": partial(_of_ggml, "Q4_0"),
}


def rival_products(
    weight: Tensor, x: Tensor, copies: int, left_out: dict[str, str]
) -> Iterable[tuple[str, RivalProducts]]:
    """Yield the products of other libraries that are installed, by their names in tables.

    weight: (out, in); x: (1, in); copies: of the weight, one product each; left_out: filled with
    the error of each library that cannot do it.
    """
    for name, make in RIVALS.items():
        try:
            yield name, make(weight, x, copies)
        except Exception as error:  # what another library raises where it cannot
            left_out[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
