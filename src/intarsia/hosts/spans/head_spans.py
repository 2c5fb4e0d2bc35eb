"""Spans put into a language model of transformers, and taken out again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...core import Card, Paper
from ...core.change import Change, Plan, set_steps, steps_of
from ...core.checks import at_least
from ...core.errors import FoldError, TargetError
from ...core.foreign import config_of
from ...core.schema import check, setting
from ..anatomy.blocks import base_of
from ..changing import apply_plan
from .attention import NAME, WINDOWS, RingCaches, register
from .rings import RingLayer
from .spans import SINK, Spans
from .windows import Windows

UNDO = "intarsia_spans"  # attribute of a model with spans: how to take them out


class Attentions(NamedTuple):
    """Attentions of a decoder, in order, and the number of key-value heads."""

    body: nn.Module
    modules: tuple[nn.Module, ...]
    heads: int


class Undo(NamedTuple):
    """Former state of a model, before it got spans."""

    implementation: Any
    hook: RemovableHandle
    windows: list[Windows]


def attentions(model: nn.Module) -> Attentions:
    """Return the attentions of a causal language model, in order.

    Raises: TargetError for another model, and for layers with windows of their own or cross
    attention, by their names.
    """
    host: Any = base_of(model)
    config: Any = config_of(host)
    body = getattr(host, "base_model", None)
    want = "a causal language model of transformers whose attention can be set"
    if body is None or not getattr(type(host), "_supports_attention_backend", False):
        fix = "Take one of Llama's family, such as smollm2."
        raise TargetError("model", got=type(host).__name__, want=want, fix=fix)
    # spans belong to key-value heads: their keys are stored
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    modules_by_path = {
        path: module
        for path, module in body.named_modules()
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal")
    }
    if not modules_by_path:
        raise TargetError(
            "model",
            got=f"{type(host).__name__} without attentions",
            want=want,
            fix="Take one of Llama's family, such as smollm2.",
        )
    _check_layers(config, modules_by_path)
    modules = sorted(modules_by_path.values(), key=lambda m: int(m.layer_idx))  # pyright: ignore
    return Attentions(body, tuple(modules), heads)


def _check_layers(config: Any, modules_by_path: dict[str, nn.Module]) -> None:
    """Check that every layer attends to all earlier tokens, without a window of its own."""
    # Mistral's configuration has one window and no kinds of layers
    default = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [default] * len(modules_by_path)
    for path, module in modules_by_path.items():
        index = int(module.layer_idx)  # pyright: ignore
        kind = kinds[index]
        crossed = "cross" in path.lower() or getattr(module, "is_cross_attention", False)
        windowed = kind != "full_attention"
        if crossed or windowed or not getattr(module, "is_causal", True):
            got = "cross attention" if crossed else f"a window of its own ({kind})"
            fix = "Take a model whose layers all see their whole past."
            want = "attention to all tokens before"
            raise TargetError(f"layer {path!r}", got=got, want=want, fix=fix)


@dataclass(frozen=True)
class HeadSpans(Change):
    """Change to attention: each head sees the first tokens (sinks) and a window of the last.

    One density for all heads is StreamingLLM; `attach_spans` gives each head a span of its own
    instead. Weights stay. `generate` caches only keys and values that heads can see, with padding
    and on prefixes, too; no assisted decoding, which takes tokens back.
    Not with assisted decoding, nor for texts longer than `length`, which are refused.
    Raises: ConfigError for settings that cannot be; TargetError in `plan` for a model with windows
    of its own or cross attention, by layer, or with spans.
    Source: arXiv:2309.17453; spans of heads arXiv:2406.14909.
    """

    density: float = setting(
        0.5,
        "The share of a text of `length` tokens that each head sees, sinks included.",
        above=0,
        most=1,
        fix="Try 0.5.",
    )
    sink: int = setting(SINK, "The first tokens that all heads see.", least=0)
    block: int = setting(16, "The tokens of a block; spans are multiples of it.", least=1)
    length: int | None = setting(
        None,
        "The tokens of a text, prompt and answer together; longer texts are refused, and in "
        "shorter ones heads see as many tokens as in these. None = the longest that the model "
        "can read.",
    )

    rewires: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check each setting; a text has room for sink and block.  Raises: ConfigError."""
        check(self)
        if self.length is not None:
            at_least("length", self.length, self.sink + self.block)

    @property
    def preserves(self) -> frozenset[str]:
        """Set with "shape" and "routing", and with "outputs" if every head sees everything."""
        return frozenset(
            ("outputs", "shape", "routing") if self.density == 1 else ("shape", "routing")
        )

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Plan the same span for every head: a share `density` of the text."""
        decoder = attentions(host)
        sizes = {"sink": self.sink, "block": self.block}
        spans = Spans.uniform(len(decoder.modules), decoder.heads, self.density, **sizes)
        return planned(host, spans, self.length, self)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Set the attention function, a window for each layer, and the hook that makes caches.

        Raises: TargetError for a model that has spans, or has another number of layers.
        """
        spans, length = Spans.from_dict(plan.decided["spans"]), int(plan.decided["length"])
        decoder = attentions(host)
        if hasattr(base_of(host), UNDO):
            fix = "Call intarsia.spans.detach_spans(model) first."
            raise TargetError("model", got="one with spans", want="one without", fix=fix)
        if spans.layers != len(decoder.modules):
            fix = "Take the spans of this model."
            got = f"{spans.layers} layers"
            raise TargetError("spans", got=got, want=f"{len(decoder.modules)} of them", fix=fix)
        # one span per key-value head, which all of its query heads share
        of_heads = spans.for_heads(decoder.heads, length)
        windows = [Windows.of(row, spans.sink, length) for row in of_heads.at(length)]
        register()
        model: Any = base_of(host)
        before = model.config._attn_implementation
        # transformers then calls our functions for mask and attention, layer by layer
        model.set_attn_implementation(NAME)
        for module, window in zip(decoder.modules, windows, strict=True):
            setattr(module, WINDOWS, window)
        # caches are made per call of the model: the hook puts rings into each new one
        hook = decoder.body.register_forward_pre_hook(RingCaches(windows), with_kwargs=True)  # pyright: ignore
        setattr(model, UNDO, Undo(before, hook, windows))
        return host

    def fold(self, host: nn.Module) -> nn.Module:
        """Raise FoldError, always: a stock model sees everything, and so computes other outputs."""
        fix = (
            "Save it with intarsia.save, or take the spans out: intarsia.spans.detach_spans(model)."
        )
        raise FoldError("spans", got="heads that see a part", want="a model as it was", fix=fix)


def planned(
    host: nn.Module,
    spans: Spans,
    length: int | None,
    change: HeadSpans | None = None,
    seed: int = 0,
) -> Plan:
    """Build the plan that limits the heads of a model to given spans, for texts of a length.

    length: None = the longest that spans or the model are made for; change: settings to record,
    None = the spans' settings.
    Raises: ConfigError for a length that the spans are not for.
    """
    config: Any = base_of(host).config
    length = length or spans.longest or int(config.max_position_embeddings)
    spans.at(length)  # raises for a length without room
    change = change or HeadSpans(spans.density(length), spans.sink, spans.block, length)
    return Plan(change, seed, {"spans": spans.to_dict(), "length": length})


def attach_spans(model: nn.Module, spans: Spans, *, length: int | None = None) -> nn.Module:
    """Limit each head to its span, in place; spans that the model had are replaced.

    spans: of `choose_spans`, `load_spans` or `Spans.uniform`.
    length: of the texts, prompt and answer together; None = the longest that the spans are for. It
    fixes how far each head sees, so that rows of a batch, chunks of a prompt and a prompt alone
    give the same.

    Raises: ConfigError for a length that the spans are not for; TargetError for spans of another
    model, and a model with windows of its own or cross attention, by layer. The model is then as it
    was.
    """
    attentions(model)
    plan = planned(model, spans, length)
    # checked before the old spans go; they come back if the new ones do not fit
    before = detach_spans(model)
    try:
        return apply_plan(model, plan)
    except BaseException:
        if before is not None:
            apply_plan(model, before)
        raise


def detach_spans(model: nn.Module) -> Plan | None:
    """Let every head see the whole text again, in place; return the plan of the removed spans.

    None for a model without spans.
    """
    host: Any = base_of(model)
    undo: Undo | None = getattr(host, UNDO, None)
    if undo is None:
        return None
    undo.hook.remove()
    host.set_attn_implementation(undo.implementation)
    for module in host.modules():
        if hasattr(module, WINDOWS):
            delattr(module, WINDOWS)
    delattr(host, UNDO)
    # the folder of the model must not put them in again
    spans_steps = [step for step in steps_of(host) if isinstance(step.plan.change, HeadSpans)]
    set_steps(host, [step for step in steps_of(host) if step not in spans_steps])
    return spans_steps[-1].plan if spans_steps else None


def spans_of(model: nn.Module) -> tuple[Spans, int] | None:
    """Return how far each head of a model sees, and the length of texts that this is for.

    None for a model with heads that see everything.
    """
    for step in reversed(steps_of(base_of(model))):
        if isinstance(step.plan.change, HeadSpans):
            return Spans.from_dict(step.plan.decided["spans"]), int(step.plan.decided["length"])
    return None


def windows_of(host: nn.Module) -> list[Windows] | None:
    """Return the windows of each layer; None for a model without spans."""
    undo: Undo | None = getattr(host, UNDO, None)
    return None if undo is None else undo.windows


def cache_bytes(cache: Any) -> int:
    """Count the bytes of keys and values in all layers of a cache, reserved memory included."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, RingLayer):
            total += layer.nbytes
        elif layer.is_initialized:
            total += layer.keys.nbytes + layer.values.nbytes
    return total


CARD = Card(
    "head_spans",
    kind="change",
    config=HeadSpans,
    paper=Paper("2309.17453", 2023, "Efficient Streaming Language Models with Attention Sinks"),
    tiny={"density": 0.5, "sink": 2, "block": 2, "length": 24},
    summary="Attention to sinks and a window, the same for every head or one that is given.",
    family="attention spans",
    names=("StreamingLLM", "attention sinks"),
)
