"""MLPs of a decoder as native steps: one for every token, or a mixture of experts with a router."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..core import Format
from ..core.foreign import config_of
from ..formats.packed_linear import PackedLinear
from ..kernels import dense, native
from ..kernels.decoder import (
    ACTS,
    AddStep,
    ClampStep,
    DecoderStep,
    ExpertStep,
    GateStep,
    MixStep,
    ProductStep,
    RouteStep,
    Value,
)
from ..kernels.experts import act_name
from ..mixtures.experts import StackedExperts
from ..mixtures.mixture import Mixture
from ..mixtures.packed_experts import PackedExperts, PackedStack, PackedStock
from ..offloading.mapped import SLOTS, MappedSlots
from ..offloading.slots import Slots
from ..routers.topk import TopKRouter

LONG = 32  # rows from which torch multiplies them by a dense weight in less time
# experts functions of transformers, which differ in speed alone; "eager" and None: the model's own
FUNCTIONS = ("eager", "grouped_mm", "batched_mm", None)
# the parts of this library's mixtures that native steps compute
PARTS = (Mixture, TopKRouter, StackedExperts, PackedExperts, PackedStack, PackedStock)
# stacks of experts, of transformers and of this library, and how many matrices each has for one
STOCK = {"gate_up_proj": 2, "down_proj": 1}
OURS = {"gate": 1, "up": 1, "down": 1}
SHARES = {"renormalised": "softmax_of_chosen", "prob": "softmax"}  # by the scale of `TopK`


class Weight(NamedTuple):
    """Matrix W (out, in): its kernel call, x (N, in) -> x W^T by torch, and its bias."""

    bound: native.Bound
    matmul: Callable[[Tensor], Tensor]
    bias: Tensor | None = None


def dense_weight(matrix: Tensor, bias: Tensor | None = None) -> Weight:
    """Return a matrix (out, in) of float32 or bfloat16, read where it is; no copy is made."""
    bound = dense.bound(matrix, LONG)
    assert bound is not None  # the model's check has refused other types
    return Weight(bound, lambda x: x @ matrix.float().T, bias)


def stored_weight(
    form: Format, stored: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None = None
) -> Weight:
    """Return a matrix that a format stores.  shape: (out, in) of the matrix; bias: (out,)."""
    bound: Any = form.bound(stored, shape)
    assert bound is not None  # the model's check has refused formats without a kernel
    return Weight(bound, lambda x: form.matmul(x, stored, shape), bias)


def product_step(linear: Any, dst: Value, src: Value) -> ProductStep:
    """Return the native instruction dst = W src + b of a linear layer, packed or dense."""
    bias = None if linear.bias is None else linear.bias.detach()
    if isinstance(linear, PackedLinear):
        form, stored, shape = linear.form, linear.stored, linear.shape
        # the layer keeps its kernel call, which is not made twice
        weight = Weight(linear.product, lambda x: form.matmul(x, stored, shape), bias)
    else:
        weight = dense_weight(linear.weight.detach(), bias)
    return ProductStep(dst, src, *weight)


def mlp_steps(mlp: Any, dst: Value, src: Value, act: str) -> Iterator[ExpertStep]:
    """Yield the instructions dst = down(act(gate src) up src) of an MLP.

    mlp: with gate, up and down projections; dst and src may be the same; act: of `kernels.decoder`.
    """
    inner = mlp.down_proj.in_features
    gate, up, hidden = _hidden_values(inner)
    # one product with an output of both halves, or two products
    if hasattr(mlp, "gate_up_proj"):  # Phi-3
        both = Value(f"gate and up {inner}", 2 * inner)
        yield product_step(mlp.gate_up_proj, both, src)
        gate, up = Value(both.name, inner), Value(both.name, inner, inner)
    else:
        yield product_step(mlp.gate_proj, gate, src)
        yield product_step(mlp.up_proj, up, src)
    yield GateStep(hidden, gate, up, act)
    yield product_step(mlp.down_proj, dst, hidden)


def is_mixture(mlp: nn.Module) -> bool:
    """Return True for a block of experts instead of an MLP."""
    return "experts" in mlp._modules


def mixture_steps(block: Any, dst: Value, src: Value, act: str) -> Iterator[DecoderStep]:
    """Yield the instructions dst = sum_e g_e expert_e(src) of a sparse block.

    block: of transformers, with a router `gate`, `experts`, and perhaps an expert for all tokens,
    with the sigmoid of a score of its own as its share (Qwen2-MoE); or a `Mixture`. act: the stock
    experts' activation, of `kernels.decoder`.
    """
    router, active, share = _router(block)
    count, width = router.bound.sides
    scores, gates, rows = (
        Value(f"scores {count}", count),
        Value(f"gates {count}", count),
        Value("expert rows", width),
    )
    # 1. the router: scores, and the weights of the best experts
    yield ProductStep(scores, src, *router)
    yield RouteStep(gates, scores, active, share)
    # 2. the experts, each on the rows that were routed to it
    slots = vars(block.experts).get(SLOTS)
    if slots is not None and not isinstance(slots[0], MappedSlots):
        reader = OffloadedExperts(*slots)
        programs = [expert_steps(reader.weights(), rows, act)]
        yield MixStep(dst, src, gates, rows, programs, reader)
    else:
        shell = getattr(block.experts, "shell", block.experts)  # of packed experts
        act = _act_of(shell.act) if isinstance(shell, StackedExperts) else act
        weights = (expert_weights(block.experts, expert) for expert in range(count))
        programs = [expert_steps(matrices, rows, _of(shell, act)) for matrices in weights]
        reader = None if slots is None else MappedExperts(*slots)
        yield MixStep(dst, src, gates, rows, programs, reader)
    # 3. the shared expert: a mixture of one, with a gate of its own
    if "shared_expert" in block._modules:
        score, gate, shared = Value("score", 1), Value("share", 1), Value("shared", width)
        yield product_step(block.shared_expert_gate, score, src)
        yield RouteStep(gate, score, 1, "sigmoid")
        program = list(mlp_steps(block.shared_expert, rows, rows, act))
        yield MixStep(shared, src, gate, rows, [program])
        yield AddStep(dst, dst, shared)


def _router(block: Any) -> tuple[Weight, int, str]:
    """Return a router's weight, the number of experts of a token, and how they are weighed."""
    if isinstance(block, Mixture):
        router: Any = block.router
        active, share = router.config.active, SHARES[router.scale]
        bias = None if router.bias is None else router.bias.detach()
        return dense_weight(router.weight.detach(), bias), active, share
    if hasattr(block, "router"):  # GPT-OSS
        weight = dense_weight(block.router.weight.detach(), block.router.bias.detach())
        return weight, block.router.top_k, SHARES["renormalised"]
    # Mixtral's weights always sum to 1, others have a setting
    sums_to_one = getattr(block.gate, "norm_topk_prob", True)
    share = SHARES["renormalised" if sums_to_one else "prob"]
    return dense_weight(block.gate.weight.detach()), block.gate.top_k, share


def _act_of(act: nn.Module) -> str:
    """Return the name in `kernels.decoder` of a torch or transformers activation, "" for none."""
    name = act_name(act) or next((n for n in ACTS if type(ACT2FN[n]) is type(act)), "")
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


class Clamped(NamedTuple):
    """Activation of pairs of a gate and its factor, as `ClampStep` has it."""

    alpha: float
    limit: float


def _of(shell: Any, act: str) -> str | Clamped:
    """Return the activation of experts: a name, or the numbers of GPT-OSS's."""
    return Clamped(shell.alpha, shell.limit) if _is_interleaved(shell) else act


def _is_interleaved(shell: Any) -> bool:
    """Return True for experts with rows of gate and up in turn, as GPT-OSS has them."""
    return not getattr(shell, "is_concatenated", True) and hasattr(shell, "alpha")


def expert_steps(weights: Sequence[Weight], rows: Value, act: str | Clamped) -> list[ExpertStep]:
    """Return the program of an expert, rows = down(act(gate rows) up rows).

    weights: gate, up and down, or both and down where act is of pairs; rows: its inputs,
    overwritten by its outputs; act: of `kernels.decoder`.
    """
    if isinstance(act, Clamped):
        both, down = weights
        wide = both.bound.sides[0]
        pairs, hidden = Value(f"pairs {wide}", wide), Value(f"hidden {wide // 2}", wide // 2)
        return [
            ProductStep(pairs, rows, *both),
            ClampStep(hidden, pairs, *act),
            ProductStep(rows, hidden, *down),
        ]
    gate, up, down = weights
    inner = gate.bound.sides[0]  # hidden units: W has the sides (out, in)
    gate_value, up_value, hidden = _hidden_values(inner)
    return [
        ProductStep(gate_value, rows, *gate),
        ProductStep(up_value, rows, *up),
        GateStep(hidden, gate_value, up_value, act),
        ProductStep(rows, hidden, *down),
    ]


def _hidden_values(inner: int) -> tuple[Value, Value, Value]:
    """Return the values of gate, up and their product in an MLP of `inner` hidden units."""
    # a product writes whole rows, so that MLPs of another width need other memory
    return (
        Value(f"gate {inner}", inner),
        Value(f"up {inner}", inner),
        Value(f"hidden {inner}", inner),
    )


def expert_weights(experts: Any, expert: int) -> list[Weight]:
    """Return gate, up and down of an expert in memory; both in one where their rows alternate.

    experts: of transformers or of a `Mixture`, dense or packed (`Qmoe`).
    """
    shell, stacks = getattr(experts, "shell", experts), getattr(experts, "stacks", {})
    parts = OURS if isinstance(shell, StackedExperts) else STOCK
    parts = dict.fromkeys(parts, 1) if _is_interleaved(shell) else parts
    weights: list[Weight] = []
    for name, count in parts.items():
        bias = getattr(shell, f"{name}_bias", None)
        bias = None if bias is None else bias.detach()[expert]
        if name in stacks:
            stack = cast(PackedStack, stacks[name])
            _, rows, width = stack.sizes
            for first in range(0, rows, rows // count):
                stored = stack.of(expert, first, rows // count)
                weights.append(stored_weight(stack.form, stored, (rows // count, width), bias))
        else:
            matrix = getattr(shell, name).detach()[expert]
            weights += [dense_weight(part, bias) for part in matrix.chunk(count)]
    return weights


def _matrices(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return gate, up and down of an expert, as views."""
    # "gate_up_proj", (2 inner, width), gate above up; "down_proj", (width, inner)
    both, down = (tensors[name] for name in STOCK)
    return [*both.chunk(2), down]


class MappedExperts:
    """Reader that brings the pages of a layer's packed experts, which have programs of their own.

    slots: memory of the experts that are resident; layer: its number there.
    bounds: the kernels' products, each bound to the address of its weight; `bring` points them to
    another expert's.
    """

    def __init__(self, slots: Slots, layer: int) -> None:
        self.slots, self.layer = slots, layer

    def begin(self, experts: list[int]) -> None:
        """Begin to read the experts that are not in memory.

        Until `end` no other forward may use the slots.
        """
        self.slots.turn.acquire()
        try:
            self.slots.ask(self.layer, experts)
        except BaseException:
            self.end()
            raise

    def bring(self, expert: int) -> None:
        """Wait until an expert is in memory.  Raises: CheckpointError for one that is damaged."""
        self.slots.expert(self.layer, expert)

    def end(self) -> None:
        """Let go of the experts, and begin to read those that later layers will probably need."""
        try:
            self.slots.let_go()
            self.slots.guess()
        finally:
            self.slots.turn.release()


class OffloadedExperts(MappedExperts):
    """Reader that brings a layer's experts from disk into the one program of its mixture."""

    def __init__(self, slots: Slots, layer: int) -> None:
        super().__init__(slots, layer)
        # any slot shows types and sizes; its content is not read before `bring`
        self.tensors = _matrices(dict(slots.store.views(layer, slots.arena[0])))
        self.bounds = [dense_weight(matrix).bound for matrix in self.tensors]

    def weights(self) -> list[Weight]:
        """Return gate, up and down of the expert that was brought last."""

        def product(index: int) -> Callable[[Tensor], Tensor]:
            # by torch; `tensors` is read when it is called, when another expert may be there
            return lambda x: x @ self.tensors[index].float().T

        return [Weight(bound, product(index)) for index, bound in enumerate(self.bounds)]

    def bring(self, expert: int) -> None:
        """Wait until an expert is in memory, and let the program read it there.

        Raises: CheckpointError for an expert that is cut short or changed.
        """
        self.tensors = _matrices(self.slots.expert(self.layer, expert))
        for bound, matrix in zip(self.bounds, self.tensors, strict=True):
            bound.point_to(matrix)


def mixture_objection(module: nn.Module) -> str:
    """Return the reason why native steps cannot compute a part of a mixture, "" if they can.

    module: any; one that is no part of a mixture has no reason against it.
    """
    if isinstance(module, Mixture) and not (module.capacity is None is module.shared):
        return "a capacity or a shared expert"
    if isinstance(module, TopKRouter) and module.scale not in SHARES:
        return f"a router with scale={module.scale!r}"
    if isinstance(module, PackedExperts):
        return "" if module.gated else "experts without a gate"
    if isinstance(module, StackedExperts):
        # a gate that is there is a parameter, or was packed and is no attribute any more
        if vars(module).get("gate", module) is None:
            return "experts without a gate"
        return "" if _act_of(module.act) else f"experts with the activation {module.act}"
    if isinstance(module, PackedStack):
        stored = list(module.buffers())
        bound = all(t.is_contiguous() and t.device.type == "cpu" for t in stored)
        return "" if bound else f"no kernel for {module.form}"
    if getattr(module, "is_transposed", False) and hasattr(module, "down_proj"):
        # packed ones have lost their matrices
        return "experts stored as (in, out), unless they are packed"
    if SLOTS in vars(module) and not isinstance(vars(module)[SLOTS][0], MappedSlots):
        slots, layer = vars(module)[SLOTS]
        types = {tensor.dtype for _, tensor in slots.store.views(layer, slots.arena[0])}
        strange = sorted(map(str, types - dense.KINDS.keys()))
        return f"weights of {', '.join(strange)}" if strange else ""
    function = getattr(config_of(module), "_experts_implementation", None)
    if "down_proj" in module._parameters and function not in FUNCTIONS:
        return f"experts that {function!r} computes"
    return ""
