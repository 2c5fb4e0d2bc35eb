"""SliME: a global view through two mixed adapters, local tiles chosen by the question
(Beyond LLaVA-HD, arXiv:2406.08487)."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Lora
from ..core import Card, Cell, Paper
from ..core.change import Plan
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.context import MODALITIES
from ..gating.random_source import RandomSource, seeded_by
from ..routers.noisy_topk import NoisyTopK
from ..schedules.phases import Phase
from .connectors import AskedTokens, Connector, Projector, Resampler, Vectors, check_pooled, pooled
from .data.encoders import encoder
from .modalities import NAME, Senses, check_decoder, connectors_of, install, width_of

STAGES = {"global-mlp": 0.2, "global-queries": 0.2, "local": 0.2, "joint": 0.4}  # of the epochs
NOISE = 0.1  # of the sum of a vector's cosines, while training


@dataclass(frozen=True)
class Slime(Senses):
    """A decoder that reads pictures of any shape within a budget of vectors, kept exactly.

    Global: y = G_1 P(x) + G_2 P(R(x)), P a projector, R a resampler, G = softmax(x W_g + noise) of
    the view of the whole picture, x normed (our choice: features of encoders are large). Local:
    `queries` of each tile by another resampler, then P. Of all local vectors l those with the
    largest s = softmax(mean over the question's T tokens t of cos(l, t) / tau) stay, in their order
    in the picture; while training, noise of .1 / T is added to the mean.
    [global | separator | kept] goes into the text.

    Trained in four stages, see `phases`. Answers' tokens are never looked at: the released selector
    reads them in training, and chooses otherwise afterwards. The choice itself has no gradient.

    Raises: ConfigError for numbers that cannot be, such as a budget without room for one local
    vector; TargetError for a model that is no decoder; UnknownName for an encoder.
    Source: paper, section 3, and released code. Not for small pictures: use `Modalities`.
    """

    image: str = setting("pixels", "The name of the pictures' encoder, see `intarsia.senses.data`.")
    tiles: int = setting(6, "The tiles of a picture at most.", least=1)
    whole: int = setting(16, "The vectors of the global view.", least=1)
    queries: int = setting(16, "The vectors of a tile.", least=1)
    budget: int | None = setting(
        64,
        "The vectors of a picture, all parts and the separator counted; a small picture without "
        "tiles has `whole`. None = by top_p: the largest s until their sum is above it; in "
        "training the others are masked, and in answers they are left out.",
    )
    top_p: float = setting(
        0.95, "The sum of s that is kept where there is no budget.", least=0, most=1
    )
    tau: float | None = setting(
        None,
        "The temperature in s; None = 1 / T, the released softmax of the sum over tokens, which "
        "is sharper the longer a question is; a number makes `top_p` mean the same for every "
        "question.",
        above=0,
        fix="Try 0.07, or None.",
    )
    over: Lora | None = setting(
        help=(
            "The LoRA of the decoder in the last stage; None = the decoder stays frozen. It is put "
            "in by intarsia.adapt(model, method.over, head=None), which `intarsia fit` calls."
        ),
        factory=lambda: Lora(8, 16.0, roles=("qkv", "projection", "mlp_linear")),
    )

    stores: ClassVar[str] = "added"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset({"outputs", "routing"})
    added: ClassVar[tuple[str, ...]] = (NAME,)

    def __post_init__(self) -> None:
        """Check the numbers of vectors, the shares, and the encoder's name."""
        check(self)
        check_budget(self.budget, self.whole)
        check_pooled(encoder(self.image, "image").vectors, self.whole, grid=True)

    @property
    def encoders(self) -> dict[str, str]:
        """The encoder of pictures, by modality."""
        return {"image": self.image}

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Check that the host can get a connector, and return the plan, which has the seed."""
        check_decoder(host)
        return super().plan(host, batches, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Put the connector between the picture encoder and the decoder, in place."""
        check_decoder(host)
        generator = torch.Generator().manual_seed(plan.seed)
        width = encoder(self.image, "image").width
        return install(host, {"image": TiledView(self, width, width_of(host), generator)})

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, None]:
        """Yield the four stages of training; each trains its own parts of the connector.

        model: one to which this change was applied; the caller trains it in each yielded phase;
          seed: unused, nothing is drawn.
        global-mlp: the projector, the gate held at it; global-queries: the resampler of the whole,
          the gate held at that; local: the resampler of tiles, without the global view; joint: all
          of them, the gate, and the LoRA of the decoder.
        Raises: ConfigError for a model without this change, or without the LoRA of `over`.
        """
        view = tiled_view(model)
        cells = [p for m in model.modules() if isinstance(m, Cell) for p in m.parameters()]
        if self.over is not None and not cells:
            fix = "Call model = intarsia.adapt(model, method.over, head=None), or set over=None."
            raise ConfigError("model", got="no LoRA in the decoder", want="that of over", fix=fix)
        trained: dict[str, Iterable[nn.Parameter]] = {
            "global-mlp": list(view.projector.parameters()),
            "global-queries": [*view.whole.parameters(), *view.projector.parameters()],
            "local": [*view.local.parameters(), view.separator],
            "joint": [*view.parameters(), *cells],
        }
        try:
            for stage, share in STAGES.items():
                for parameter in model.parameters():
                    # Everything is frozen first, then the stage's parts are opened.
                    parameter.requires_grad_(False)
                for parameter in trained[stage]:
                    parameter.requires_grad_(True)
                view.stage = stage
                yield Phase(stage, share, last=stage == "joint")
        finally:
            view.stage = "joint"


def check_budget(budget: int | None, whole: int) -> None:
    """Refuse a budget without room for the global view, the separator and one local vector.

    budget: vectors of a picture, None = no limit.
    Raises: ConfigError.
    """
    if budget is not None and budget < whole + 2:
        want = f"at least {whole + 2}: {whole} of the whole, a separator, one of a tile"
        fix = f"Raise it, or lower whole={whole}."
        raise ConfigError("budget", got=budget, want=want, fix=fix)


def tiled_view(model: nn.Module) -> TiledView:
    """Return the module of `Slime` in a model, which turns pictures into vectors for its decoder.

    Raises: ConfigError for any other.
    """
    view = connectors_of(model).get("image")
    if not isinstance(view, TiledView):
        want, fix = (
            "one with Slime",
            "Call intarsia.apply(model, intarsia.senses.Slime(...)) first.",
        )
        raise ConfigError("model", got=type(view).__name__, want=want, fix=fix)
    return view


def set_budget(model: nn.Module, budget: int | None) -> None:
    """Set how many vectors a picture may have from now on, in place.

    budget: the number, None = as many as `top_p` selects. Make the processor's rows afterwards: the
    number of placeholder tokens follows the budget.
    Raises: ConfigError for a budget without room for the global view and one local vector.
    """
    view = tiled_view(model)
    check_budget(budget, view.settings.whole)
    view.budget = budget


class TiledView(Connector):
    """The connector of `Slime`: views of pictures to vectors within the budget.

    stage: which parts are read, "joint" but while `Slime.phases` trains.
    Parameters: projector P, whole and local R, gate W_g and W_noise, separator.
    """

    def __init__(
        self, settings: Slime, width: int, outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__(width, outputs)
        self.settings, self.budget, self.stage = settings, settings.budget, "joint"
        self.projector = Projector(width, outputs, generator=generator)
        self.whole = Resampler(width, settings.whole, generator=generator)
        self.local = Resampler(width, settings.queries, generator=generator)
        self.gate = NoisyTopK(2, 2, importance=0, load=0).build(width, generator=generator)
        self.separator = nn.Parameter(torch.empty(outputs))
        nn.init.normal_(self.separator, std=0.02, generator=generator)
        self.noise = RandomSource(seeded_by(generator))

    def count(self, views: int) -> int:
        """Return how many vectors a picture is turned into, the separator counted."""
        overview = self.settings.whole
        # A picture without tiles has neither a separator nor local vectors.
        if views == 1:
            return overview
        all_vectors = overview + 1 + self.settings.queries * (views - 1)
        return all_vectors if self.budget is None else min(self.budget, all_vectors)

    def describe(self, views: int) -> str:
        """Describe in words how many vectors a picture is turned into."""
        overview, local_vectors = self.settings.whole, self.settings.queries * (views - 1)
        if views == 1:
            return f"1 view, {overview} vectors"
        if self.budget is None:
            return (
                f"{views} views, {overview} + 1 vectors, and of {local_vectors} local ones by top_p"
            )
        local = self.count(views) - overview - 1
        counts = f"{overview} + 1 + {local} vectors: {local} of {local_vectors} local ones"
        return f"{views} views, {counts}"

    def mixture(self, x: Tensor) -> Tensor:
        """Mix the global vectors of pictures: y = G_1 P(x) + G_2 P(R(x)).

        x: (P, n, width), features of the whole pictures; P: the projector, R: the resampler, G: the
          gate's two weights for each vector.  -> (P, whole, d).
        """
        x = x.to(self.separator.dtype)
        means = pooled(x, self.settings.whole, grid=True)  # (P, whole, width)
        # While one branch of the mixture trains, the gate is held at it.
        if self.stage in ("global-mlp", "local"):
            return self.projector(means)
        queries = self.projector(self.whole(x))
        if self.stage == "global-queries":
            return queries
        image_modality = torch.full(means.shape[:2], MODALITIES.index("image"))
        # The gate sees pictures alone: the context's padding and modality are of the text.
        with self.gate.context.having(valid=None, modality=image_modality):
            g = self.gate(self.projector.norm(means)).dense()  # (P whole, 2)
        g = g.view(*means.shape[:2], 2).to(queries.dtype)
        return g[..., :1] * self.projector(means) + g[..., 1:] * queries

    def scores(self, local: Tensor, embeds: Tensor, is_question: Tensor) -> Tensor:
        """Score a picture's local vectors by their similarity to the question, by a softmax.

        local: (n, d), vectors of the tiles; embeds: (T, d) token embeddings; is_question: (T,)
          bool, which tokens are of the question.  -> (n,).  For a question without tokens vectors
          are scored by their norm, with a warning.
        """
        words = embeds[is_question]
        if not len(words):
            message = "a question without words: local vectors are chosen by their norm"
            warnings.warn(message, UserWarning, stacklevel=2)
            return local.float().norm(dim=-1).softmax(0)
        # Equation of the selector: s = softmax(mean_t cos(l, t) / tau).
        unit = F.normalize(local.float(), dim=-1)
        similarity = (unit @ F.normalize(words.float(), dim=-1).T).mean(1)  # mean cosine, (n,)
        if self.training:
            similarity = similarity + NOISE / len(words) * self.noise.normal(len(similarity)).to(
                similarity
            )
        tau = 1 / len(words) if self.settings.tau is None else self.settings.tau
        return (similarity / tau).softmax(0)

    def forward(self, features: Tensor, views: Tensor, asked: AskedTokens | None) -> Vectors:
        """Compute the pictures' vectors, and which are read; features: whole views before tiles."""
        self.check(features)
        counts = views.tolist()
        # Views of all pictures lie one after another; a picture's first view is the whole picture.
        first_views = (views.cumsum(0) - views).to(features.device)
        overview = self.mixture(features[first_views])  # (P, whole, d)
        is_tile = torch.ones(len(features), dtype=torch.bool, device=features.device)
        is_tile[first_views] = False
        local = self.projector(self.local(features[is_tile].to(self.separator.dtype)))
        parts = local.split([n - 1 for n in counts])  # (tiles, queries, d) of each picture
        rows: list[Tensor] = []
        masks: list[Tensor] = []
        for number, (n, tiles) in enumerate(zip(counts, parts, strict=True)):
            rows.append(overview[number])
            is_read = torch.ones(self.count(n), dtype=torch.bool, device=features.device)
            if n > 1:
                flat = tiles.flatten(0, 1)  # (tiles queries, d), as they lie in the picture
                selected = self._select_local(flat, asked, number)
                # Within a budget unread vectors are left out; by top_p the number varies, so they
                # are masked.
                rows += [self.separator[None], flat[selected] if self.budget else flat]
                self._hide(is_read, selected)
            masks.append(is_read)
        lengths = torch.tensor([len(k) for k in masks], device=features.device)
        return Vectors(torch.cat(rows), lengths, torch.cat(masks))

    def _select_local(self, local: Tensor, question: AskedTokens | None, number: int) -> Tensor:
        """Return the mask of a picture's local vectors (of its tiles) to read: (n,) bool."""
        if question is None:
            embeds = local.new_zeros(1, local.shape[1])
            s = self.scores(local, embeds, torch.zeros(1, dtype=torch.bool, device=local.device))
        else:
            s = self.scores(local, question.embeds[number], question.mask[number])
        capacity = None if self.budget is None else self.budget - self.settings.whole - 1
        return select_largest(s.detach(), self.settings.top_p, capacity)

    def _hide(self, is_read: Tensor, selected: Tensor) -> None:
        """Clear, in `is_read`, the vectors of a picture that the language model must not read."""
        # in the order global view, separator, tiles
        overview = self.settings.whole
        if self.budget is None:
            is_read[overview + 1 :] = selected
        if self.stage == "local":
            is_read[:overview] = False
        elif self.stage != "joint":
            is_read[overview:] = False


def select_largest(s: Tensor, top_p: float, capacity: int | None) -> Tensor:
    """Return a mask of the largest scores: `capacity` of them, or the fewest that sum above top_p.

    s: (n,) scores that sum to 1; top_p: the sum to reach, unused with a capacity; capacity: number
      of scores to select, None = by top_p. Of equal scores the first stay.  -> (n,) bool.
    """
    order = s.sort(descending=True, stable=True)
    if capacity is None:
        # A vector stays while the sum of the larger ones has not yet passed top_p.
        sum_before = order.values.cumsum(0) - order.values  # the sum of those before each
        count = int((sum_before.clamp(max=1) <= top_p).sum())  # rounded, a sum may be above 1
    else:
        count = min(capacity, len(s))
    mask = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    mask[order.indices[:count]] = True
    return mask


@torch.no_grad()
def selection(model: nn.Module, row: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the scores and the selected local vectors of each picture in a processor's row.

    row: one sample with `input_ids`, `image`, `image_views` and `asked`.
      Returns for each picture (tiles, queries) float and bool, tiles row by row; nothing for a
      picture without tiles.
    """
    view = tiled_view(model)
    host: Any = model
    ids = row["input_ids"].to(next(model.parameters()).device)
    embeds = host.get_input_embeddings()(ids.clamp(min=0))
    # Noise is added in training only; the selection shown is the one used in answers.
    was_training, view.training = view.training, False
    try:
        # The views of a picture: the whole one first, then its tiles.
        features = row["image"].to(embeds.device, view.separator.dtype)
        selections: list[tuple[Tensor, Tensor]] = []
        for part in features.split(row["image_views"].tolist()):
            local = view.projector(view.local(part[1:])).flatten(0, 1)
            if not len(local):
                continue
            s = view.scores(local, embeds, row["asked"].bool().to(ids.device))
            capacity = None if view.budget is None else view.budget - view.settings.whole - 1
            selected = select_largest(s, view.settings.top_p, capacity)
            shape = (len(part) - 1, view.settings.queries)
            selections.append((s.view(shape).cpu(), selected.view(shape).cpu()))
        return selections
    finally:
        view.training = was_training


CARD = Card(
    "slime",
    kind="change",
    config=Slime,
    paper=Paper(
        "2406.08487",
        2024,
        "Beyond LLaVA-HD: Diving into High-Resolution Large Multimodal Models",
    ),
    tiny={"image": "pixels", "whole": 4, "queries": 4, "budget": 8, "over": None},
    summary="Pictures of any shape within a budget of vectors, chosen by the question.",
    family="pictures and sounds",
    names=("SliME",),
)
