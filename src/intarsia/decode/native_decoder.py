"""A Llama-like decoder of transformers as a program of native steps: one call a token."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ..core.errors import ConfigError
from ..core.foreign import config_of, model_type_of, tensor_of
from ..formats.packed_linear import PackedLinear
from ..gating.join import BeforeForward
from ..hosts.anatomy.blocks import base_of
from ..hosts.spans.head_spans import windows_of
from ..hosts.spans.windows import Windows
from ..kernels import dense, native
from ..kernels.decoder import (
    ACTS,
    AddStep,
    AttendStep,
    ClipStep,
    DecoderStep,
    EmbedStep,
    LayerCache,
    MixStep,
    NativeDecoder,
    NormStep,
    ProductStep,
    RotateStep,
    SquashStep,
    Value,
)
from ..offloading.resident import Foreseeing
from .fixed_cache import FixedLayer, cache_name
from .native_mlp import (
    PARTS,
    is_mixture,
    mixture_objection,
    mixture_steps,
    mlp_steps,
    product_step,
)
from .one_token import has_hooks

# model types with a residual stream, rotated heads, and a gated MLP or a mixture of such MLPs
KINDS = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "olmo", "olmo2"),
    *("gemma", "gemma2", "gemma3_text"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"),
)
OFFSETS = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")  # their weight w is stored as w - 1
SQUASHED = ("gemma2",)  # scores have a limit, which others have as a setting without effect
WINDOWED = ("mistral", "phi3", "mixtral")  # one window for all layers, in the configuration alone
GROWING = ("dynamic", "longrope")  # rotations that depend on the length of the text
ROWS = 64  # tokens of a prompt that are computed together
RING_ROWS = 16  # where heads have windows: their rings have room for as many more
SLOTS = 16  # texts at once
EPSILON = 1e-5  # epsilon of OLMo's norm, which has no attribute for it


class Unsuited(Exception):
    """Error with the reason, in a few words, why native steps cannot compute a model."""


def why_not(model: nn.Module) -> str:
    """Return the reason why `NativeText` cannot compute a model; "" if it can."""
    try:
        _check_suited(model)
    except Unsuited as reason:
        return str(reason)
    return ""


def path_of(reason: str) -> str:
    """Return the name of the code that computes a model's tokens; reason: of `why_not`."""
    return f"transformers' layers: {reason}" if reason else "native steps, one call a token"


class TakingTurns:
    """Forward of a model that waits for a lock, which it shares with copies of the model."""

    def __init__(self, forward: Callable[..., Any], lock: threading.Lock) -> None:
        functools.update_wrapper(self, forward)  # `generate` reads the signature
        self.forward, self.lock = forward, lock

    def __call__(self, *args: Any, **settings: Any) -> Any:
        with self.lock:
            return self.forward(*args, **settings)


class NativeText:
    """Texts of a decoder, each in a slot of the cache; tokens are computed by native steps.

    Weights are read where they are, in the format in which they are stored; keys and values are in
    the type of the model, products are summed in float32. Heads with spans or windows have a ring
    buffer for the keys that they see. Logits equal the forward's, to 1e-5 in float32
    where no format rounds inputs.
    slots: texts at once, up to 16; length: tokens of each, prompt and answer together.
    Raises: ConfigError for a model that `why_not` has a reason against, or another number of slots.
    """

    def __init__(self, model: nn.Module, *, slots: int = 1, length: int) -> None:
        if reason := why_not(model):
            want, fix = f"a decoder of {', '.join(KINDS)}", "Use the model's own forward."
            raise ConfigError("model for native steps", got=reason, want=want, fix=fix)
        if not 1 <= slots <= SLOTS:
            fix = "Share the texts out over several."
            raise ConfigError("slots", got=slots, want=f"1 to {SLOTS}", fix=fix)
        host: Any = base_of(model)
        self.model, layers, spans = host, host.model.layers, windows_of(host)
        # spans are defined for texts of up to so many tokens
        length = length if spans is None else min(length, *(layer.length for layer in spans))
        self.heads = [
            list(_head_runs(layer.self_attn, host, slots, length, of_layer))
            for layer, of_layer in zip(layers, spans or [None] * len(layers), strict=True)
        ]
        self.windows = any(run.window for runs in self.heads for run in runs)
        steps = [*steps_of(host, self.heads, length)]
        last = [*steps_behind_layers(host)]
        self.rows = RING_ROWS if self.windows else ROWS
        # norm and head, the tail, are needed for the last token of a prompt alone
        self.program, self.tail = NativeDecoder([*steps, *last], self.rows), len(last)
        # tokens of a prompt from which torch's products take less time
        self.most = min(bound.max_rows for bound in _bounds(steps))
        self.length = length
        self.counts = [0] * slots  # tokens that each slot has
        # predictors of an offloaded model's experts
        hooks = host._forward_pre_hooks.values()
        self.predictors = [hook for hook in hooks if isinstance(hook, Foreseeing)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for runs in self.heads for run in runs for t in run.cache[:2])

    def prefill(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Add a prompt, or more of it, to a slot; return the logits behind its last token, (V,).

        slot: number of the text; tokens: ids. They are computed 64 at a time, 16 where heads have
        windows. Without windows, more tokens than a weight's kernel is fast for, 32 where it is
        dense, are computed by the model's forward, into the same cache.
        Raises: ConfigError for no token, or more than there is room for.
        """
        room = self.length - self.counts[slot]
        if not 0 < len(tokens) <= room:
            fix = "Make room for prompt and answer."
            raise ConfigError("tokens", got=len(tokens), want=f"1 to {room}", fix=fix)
        if len(tokens) > self.most and not self.windows:
            return self._forward(slot, tokens)
        logits = torch.empty(0)
        for first in range(0, len(tokens), self.rows):
            block = tokens[first : first + self.rows]
            places = range(self.counts[slot], self.counts[slot] + len(block))
            logits = self._compute(block, [slot] * len(block), places, tail=self.tail)
            self.counts[slot] += len(block)
        return logits[0]

    def prefill_rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Add a prompt to each slot; return the logits behind the prompts, (B, V).

        ids: (B, T), one prompt in each row; mask: (B, T), 0 = padding, which is left out.
        """
        prompts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        return torch.stack([self.prefill(slot, prompt) for slot, prompt in enumerate(prompts)])

    @torch.inference_mode()
    def _forward(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Add a long prompt to a slot by transformers' layers; return the last logits, (V,)."""
        cache: Any
        cache, count = DynamicCache(config=self.model.config), self.counts[slot]
        # views of this slot's memory: transformers writes where the native steps will read
        # one run each: without windows (`prefill`) the heads of a layer see equally far
        memories = ((run.cache[0], run.cache[1]) for (run,) in self.heads)
        cache.layers = [
            FixedLayer.over(keys[slot : slot + 1], values[slot : slot + 1], count)
            for keys, values in memories
        ]
        arguments = {cache_name(self.model): cache, "use_cache": True, "logits_to_keep": 1}
        logits = self.model(input_ids=torch.tensor([list(tokens)]), **arguments).logits
        self.counts[slot] += len(tokens)
        return logits[0, -1].float()

    def step(self, tokens: Sequence[int], slots: Sequence[int] | None = None) -> Tensor:
        """Add one token to each slot; return the logits behind each, (N, V) float32.

        tokens: (N,) ids.  slots: the slot of each token; None = 0, 1, ...  Raises: ConfigError as
        `prefill`.
        """
        indices = range(len(tokens)) if slots is None else slots
        logits = self._compute(tokens, indices, [self.counts[slot] for slot in indices])
        for slot in indices:
            self.counts[slot] += 1
        return logits

    def _compute(
        self, tokens: Sequence[int], slots: Sequence[int], places: Sequence[int], *, tail: int = 0
    ) -> Tensor:
        """Compute the logits behind tokens, after the predictors have seen these."""
        for predictor in self.predictors:
            predictor.foresee(torch.tensor(tokens))
        return self.program(tokens, slots, places, tail=tail)

    def clear(self, slot: int) -> None:
        """Empty a slot, so that another text can begin in it."""
        self.counts[slot] = 0


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the attention: query heads, key-value heads, width of a head."""

    heads: int
    groups: int
    size: int

    @classmethod
    def of(cls, host: Any) -> _Sizes:
        """Read the sizes of the attention from a model's configuration and its first layer."""
        config, size = host.config, host.model.layers[0].self_attn.head_dim
        groups = config.num_key_value_heads or config.num_attention_heads
        return cls(config.num_attention_heads, groups, size)


@dataclass(frozen=True)
class _HeadRun:
    """Neighbouring key-value heads that see equally far, with their cache."""

    # number of the first head
    first: int
    count: int
    # number of last tokens that they see, 0 = all, as in `AttendStep`
    window: int
    cache: LayerCache


def _head_runs(
    attention: Any, host: Any, slots: int, length: int, windows: Windows | None
) -> Iterator[_HeadRun]:
    """Yield the groups of neighbouring heads of a layer that see equally far, with empty caches."""
    sizes, dtype = _Sizes.of(host), host.get_input_embeddings().weight.dtype
    sink = 0 if windows is None else windows.sink
    # how many last tokens each head sees, 0 = all; a window as long as the cache is none
    window = _window(attention)
    reach = [window if window < length else 0] * sizes.groups
    for group in () if windows is None else windows.groups:
        for head in group.heads:
            reach[head] = 0 if sink + group.window >= length else group.window
    first = 0
    for window, neighbours in itertools.groupby(reach):
        count = len(list(neighbours))
        # room for new tokens: they are all written before the first of them attends
        room = min(length, sink + window + RING_ROWS - 1) if window else length
        shape = slots, count, room, sizes.size
        keys, values = (torch.zeros(shape, dtype=dtype) for _ in range(2))
        yield _HeadRun(first, count, window, LayerCache(keys, values, sink if window else 0))
        first += count


def steps_of(host: Any, heads: Sequence[Sequence[_HeadRun]], length: int) -> Iterator[DecoderStep]:
    """Yield the instructions of the native program that computes a model's layers, in order.

    heads: for each layer its groups of heads, with caches; length: most tokens of a text.
    """
    body = host.model
    # x: the residual stream; h: what a part of a layer reads, and then its output
    x, h = _stream(host)
    table = body.embed_tokens
    rotations = functools.cache(functools.partial(_rotation, body, length))
    yield EmbedStep(x, table.weight, float(_scale(table)))
    for layer, runs in zip(body.layers, heads, strict=True):
        rotation = rotations(_kind_of_rotation(body, layer))
        yield from _attention(layer, x, h, runs, rotation, _Sizes.of(host))
        yield from _mlp(layer, x, h, _act(host.config))


def _bounds(steps: Sequence[DecoderStep]) -> Iterator[native.Bound]:
    """Yield the products of a program, those of experts included."""
    for step in steps:
        if isinstance(step, ProductStep):
            yield step.bound
        elif isinstance(step, MixStep):
            yield from (b for program in step.experts for b in _bounds(program))


def steps_behind_layers(host: Any) -> Iterator[DecoderStep]:
    """Yield the instructions of a model's last norm, its head, and the limit of its logits."""
    (x, h), logits = _stream(host), Value("logits", host.lm_head.out_features)
    yield _norm(host.model.norm, h, x)
    yield product_step(host.lm_head, logits, h)
    if limit := getattr(host.config, "final_logit_softcapping", None):  # Gemma 2
        yield SquashStep(logits, float(limit))


def _stream(host: Any) -> tuple[Value, Value]:
    """Return the residual stream, and the value that each part of a layer reads and writes."""
    width = host.config.hidden_size
    return Value("x", width), Value("h", width)


def _scale(table: Any) -> float | Tensor:
    """Return what embeddings are multiplied by, rounded as their own forward rounds it."""
    scale = getattr(table, "embed_scale", None)  # Gemma
    return 1.0 if scale is None else scale.to(table.weight.dtype)


def _act(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act or ""


def _attention(
    layer: Any,
    x: Value,
    h: Value,
    runs: Sequence[_HeadRun],
    rotation: tuple[Tensor, Tensor],
    sizes: _Sizes,
) -> Iterator[DecoderStep]:
    """Yield the instructions of a layer's attention, x += o(attend(q, k, v))."""
    attention, heads, groups = layer.self_attn, sizes.heads, sizes.groups
    norm_before = getattr(layer, "input_layernorm", None)
    if norm_before is not None:
        yield _norm(norm_before, h, x)
    source = x if norm_before is None else h
    # 1. queries, keys and values: one product with three views of its output, or three products
    wide, narrow = heads * sizes.size, groups * sizes.size
    if hasattr(attention, "qkv_proj"):  # Phi-3
        yield product_step(attention.qkv_proj, Value("qkv", wide + 2 * narrow), source)
        q, k = Value("qkv", wide), Value("qkv", narrow, wide)
        v = Value("qkv", narrow, wide + narrow)
    else:
        q, k, v = Value("q", wide), Value("k", narrow), Value("v", narrow)
        for value, linear in ((q, attention.q_proj), (k, attention.k_proj), (v, attention.v_proj)):
            yield product_step(linear, value, source)
    # 2. what architectures do to queries and keys before the scores
    if hasattr(attention, "q_norm"):  # Qwen3 by heads, OLMo 2 and OLMoE whole
        yield _norm(attention.q_norm, q, q)
        yield _norm(attention.k_norm, k, k)
    if limit := getattr(attention.config, "clip_qkv", None):  # OLMo, OLMoE
        yield from (ClipStep(value, float(limit)) for value in (q, k, v))
    if getattr(attention, "use_rope", True):
        yield RotateStep(q, heads, *rotation)
        yield RotateStep(k, groups, *rotation)
    # 3. attention over the slot's cache, output projection, residual
    out, idle = Value("heads", wide), getattr(attention, "sinks", None)  # of GPT-OSS
    for run in runs:
        queries = heads // groups  # of a key
        share, key = queries * sizes.size, (run.count * sizes.size, run.first * sizes.size)
        yield AttendStep(
            _columns(out, run.count * share, run.first * share),
            _columns(q, run.count * share, run.first * share),
            _columns(k, *key),
            _columns(v, *key),
            run.cache,
            run.count * queries,
            attention.scaling,
            run.window,
            _score_limit(attention),
            None
            if idle is None
            else idle.detach()[queries * run.first : queries * (run.first + run.count)],
        )
    yield product_step(attention.o_proj, h, out)
    if norm_before is None or hasattr(layer, "pre_feedforward_layernorm"):  # OLMo 2; Gemma 2, 3
        yield _norm(layer.post_attention_layernorm, h, h)
    yield AddStep(x, x, h)


def _columns(value: Value, width: int, first: int) -> Value:
    return Value(value.name, width, value.first + first)


def _mlp(layer: Any, x: Value, h: Value, act: str) -> Iterator[DecoderStep]:
    """Yield the instructions of a layer's MLP or mixture, x += mlp(x)."""
    norm_behind = getattr(layer, "post_feedforward_layernorm", None)
    # Gemma 2 and 3 have norms on both sides, OLMo 2 behind the MLP alone
    before = "post_attention_layernorm" if norm_behind is None else "pre_feedforward_layernorm"
    norm_before = getattr(layer, before, None)
    if norm_before is not None:
        yield _norm(norm_before, h, x)
    source = x if norm_before is None else h
    # a mixture reads its input to the end, so that its sum needs other memory
    out = Value("mixed", h.width) if is_mixture(layer.mlp) else h
    steps = mixture_steps if is_mixture(layer.mlp) else mlp_steps
    yield from steps(layer.mlp, out, source, act)
    if norm_behind is not None:
        yield _norm(norm_behind, out, out)
    yield AddStep(x, x, out)


def _norm(module: Any, dst: Value, src: Value) -> NormStep:
    weight = tensor_of(module)
    size = src.width if weight is None else len(weight)
    if weight is not None and type(module).__name__ in OFFSETS:
        weight = 1 + weight.detach().float()
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", EPSILON))
    return NormStep(dst, src, weight, eps, size, centred=weight is None)


def _rotation(body: Any, length: int, kind: str | None) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary positions, (length, rotated numbers of a head) each."""
    places = torch.arange(length)[None]
    # kind: of the layer, where layers have rotations of their own
    further = () if kind is None else (kind,)
    cos, sin = body.rotary_emb(torch.zeros(1, dtype=torch.float32), places, *further)
    # GPT-OSS has a number for each pair
    both = 2 if model_type_of(body) == "gpt_oss" else 1
    return cos[0].repeat(1, both), sin[0].repeat(1, both)


def _kind_of_rotation(body: Any, layer: Any) -> str | None:
    """Return the kind of a layer that has a rotation of its own (Gemma 3); None = one for all."""
    return layer.self_attn.layer_type if hasattr(body.rotary_emb, "layer_types") else None


def _score_limit(attention: Any) -> float:
    """Return the limit of a layer's scores, 0 = none."""
    config = attention.config
    limit = config.attn_logit_softcapping if config.model_type in SQUASHED else None
    return float(limit or 0.0)


def _window(attention: Any) -> int:
    """Return how many last positions a token of this layer attends to; 0 means all."""
    config = attention.config
    window_of_all = config.sliding_window if config.model_type in WINDOWED else None
    return int(getattr(attention, "sliding_window", window_of_all) or 0)


def _check_suited(model: nn.Module) -> None:
    host: Any = base_of(model)
    config, body = config_of(host), host._modules.get("model")
    kind = model_type_of(host) or type(host).__name__
    if kind not in KINDS or body is None or not hasattr(host, "lm_head"):
        raise Unsuited(f"a model of kind {kind!r}")
    if native.load() is None:
        raise Unsuited(f"no kernels here ({native.why()})")
    if _act(config) not in ACTS:
        raise Unsuited(f"activation {_act(config)!r}")
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsuited("attention in both directions")
    # tables of rotations are computed once, for all lengths
    rotation = getattr(body.rotary_emb, "rope_type", "default")
    for kind in rotation.values() if isinstance(rotation, dict) else (rotation,):
        if kind in GROWING:
            raise Unsuited(f"a rotation of kind {kind!r}, which depends on the length")
    for path, module in host.named_modules():
        if reason := _objection(module):
            raise Unsuited(f"{reason} at {path or 'the model'}")


def _objection(module: nn.Module) -> str:
    """Return the reason why native steps cannot compute a module, "" if they can."""
    # padding, which the hook of mixtures reports to routers, is left out of the native caches;
    # `NativeText` itself tells the predictor of experts on disk
    waits = isinstance(vars(module).get("forward"), TakingTurns)
    if has_hooks(module, BeforeForward, Foreseeing) and not waits:
        return "a hook or another forward"
    if isinstance(module, PackedLinear):
        return "" if module.product is not None else f"no kernel for {module.form}"
    if reason := mixture_objection(module):
        return reason
    tensors = list(module.parameters(recurse=False))
    # a module of unknown code may do anything in its forward
    if any(t.device.type != "cpu" for t in tensors):
        return "weights on another device"
    foreign = not type(module).__module__.startswith(("torch.nn.", "transformers."))
    if foreign and type(module) not in PARTS:
        return f"{type(module).__name__}, which is no native step,"
    special = isinstance(module, nn.Linear | nn.Embedding) and not hasattr(module, "embed_scale")
    if special and type(module) not in (nn.Linear, nn.Embedding):
        return f"{type(module).__name__}, which is no native step,"
    # norms and biases, which have one axis, are copied as float32
    for weight in (t for t in tensors if t.dim() > 1):
        if weight.dtype not in dense.KINDS or not weight.is_contiguous():
            return f"weights of {weight.dtype}"
    return ""
