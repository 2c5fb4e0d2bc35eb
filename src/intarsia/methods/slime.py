"""SliME: a global view through two mixed adapters, local tiles chosen by the question
(Beyond LLaVA-HD, arXiv:2406.08487)."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Lora
from ..core import Card, Cell, Paper
from ..core.change import Plan
from ..core.checks import above, at_least, between
from ..core.errors import ConfigError
from ..data.senses.encoders import MODALITIES, encoder
from ..gating.random_source import RandomSource, seeded_by
from ..hosts.senses.connectors import (
    AskedTokens,
    Connector,
    Projector,
    Resampler,
    Vectors,
    check_pooled,
    pooled,
)
from ..hosts.senses.modalities import NAME, Senses, check_decoder, connectors_of, install, width_of
from ..routers.noisy_topk import NoisyTopK
from ..schedules.phases import Phase

STAGES = {"global-mlp": 0.2, "global-queries": 0.2, "local": 0.2, "joint": 0.4}  # of the epochs
NOISE = 0.1  # of the sum of a vector's cosines, while training


@dataclass(frozen=True)
class Slime(Senses):
    """A decoder that reads pictures of any shape within a budget of vectors, kept exactly.

    Global: y = G_1 P(x) + G_2 P(R(x)), P a projector, R a resampler, G = softmax(x W_g + noise) of
    the view of the whole picture, x normed (our choice: features of encoders are large). Local:
    `queries` of each tile by another resampler, then P. Of all local vectors l those stay whose
    s = softmax(mean over the question's T tokens t of cos(l, t) / tau) is largest, in their order
    in the picture; while training, noise of .1 / T is added to the mean.
    [global | separator | kept] goes into the text.

    image: the encoder; tiles: of a picture, at most; whole: vectors of the global view; queries: of
    a tile.
    budget: vectors of a picture, all parts and the separator counted; a small picture without tiles
      has `whole`.  None = by top_p: the largest s until their sum is above it. In training the
      others are masked, and in answers they are left out.
    tau: of s; None = 1 / T, the released softmax of the sum over tokens, which is sharper the
      longer a question is; a number makes `top_p` mean the same for every question.
    over: LoRA of the decoder in the last stage, None = the decoder stays frozen. It is put in by
      intarsia.adapt(model, method.over, head=None), which `intarsia fit` does by itself.

    Trained in four stages, see `phases`. Answers' tokens are never looked at: the released selector
    reads them in training, and chooses otherwise afterwards. The choice itself has no gradient.

    Raises: ConfigError for numbers that cannot be, such as a budget without room for one local
    vector; TargetError for what is no decoder; UnknownName for an encoder.
    Source: paper, section 3, and released code. Not for small pictures: use `Modalities`.
    """

    image: str = "pixels"
    tiles: int = 6
    whole: int = 16
    queries: int = 16
    budget: int | None = 64
    top_p: float = 0.95
    tau: float | None = None
    over: Lora | None = field(
        default_factory=lambda: Lora(8, 16.0, roles=("qkv", "projection", "mlp_linear"))
    )

    stores: ClassVar[str] = "added"
    rewires: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset({"outputs", "routing"})
    added: ClassVar[tuple[str, ...]] = (NAME,)

    def __post_init__(self) -> None:
        for what in ("tiles", "whole", "queries"):
            at_least(what, getattr(self, what), 1)
        between("top_p", self.top_p, 0, 1)
        if self.tau is not None:
            above("tau", self.tau, 0, "Try 0.07, or None.")
        check_budget(self.budget, self.whole)
        check_pooled(encoder(self.image, "image").vectors, self.whole, grid=True)

    @property
    def encoders(self) -> dict[str, str]:
        """The encoder of pictures."""
        return {"image": self.image}

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        check_decoder(host)
        return super().plan(host, batches, seed=seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        check_decoder(host)
        generator = torch.Generator().manual_seed(plan.seed)
        width = encoder(self.image, "image").width
        return install(host, {"image": TiledView(self, width, width_of(host), generator)})

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, None]:
        """Yields the stages, each of which trains its own part.

        global-mlp: the projector, the gate held at it; global-queries: the resampler of the whole,
        the gate held at that; local: the resampler of tiles, without the global view; joint: all of
        them, the gate, and the LoRA of the decoder.
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
                    parameter.requires_grad_(False)
                for parameter in trained[stage]:
                    parameter.requires_grad_(True)
                view.stage = stage
                yield Phase(stage, share, last=stage == "joint")
        finally:
            view.stage = "joint"


def check_budget(budget: int | None, whole: int) -> None:
    """Raises: ConfigError for one without room for the global view, the separator and one more."""
    if budget is not None and budget < whole + 2:
        want = f"at least {whole + 2}: {whole} of the whole, a separator, one of a tile"
        fix = f"Raise it, or lower whole={whole}."
        raise ConfigError("budget", got=budget, want=want, fix=fix)


def tiled_view(model: nn.Module) -> TiledView:
    """The connector of a model with `Slime`.  Raises: ConfigError for another model."""
    view = connectors_of(model).get("image")
    if not isinstance(view, TiledView):
        want, fix = (
            "one with Slime",
            "Call intarsia.apply(model, intarsia.senses.Slime(...)) first.",
        )
        raise ConfigError("model", got=type(view).__name__, want=want, fix=fix)
    return view


def set_budget(model: nn.Module, budget: int | None) -> None:
    """Answer within another budget from now on; None = by top_p.

    Make the processor's rows afterwards: the number of marks follows.
    Raises: ConfigError as `Slime` does.
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
        whole = self.settings.whole
        if views == 1:
            return whole
        every = whole + 1 + self.settings.queries * (views - 1)
        return every if self.budget is None else min(self.budget, every)

    def describe(self, views: int) -> str:
        """The budget of a picture of so many views, in words."""
        whole, every = self.settings.whole, self.settings.queries * (views - 1)
        if views == 1:
            return f"1 view, {whole} vectors"
        if self.budget is None:
            return f"{views} views, {whole} + 1 vectors, and of {every} local ones by top_p"
        local = self.count(views) - whole - 1
        return f"{views} views, {whole} + 1 + {local} vectors: {local} of {every} local ones"

    def mixture(self, x: Tensor) -> Tensor:
        """The global vectors of the whole pictures.  (P, n, width) -> (P, whole, d)."""
        x = x.to(self.separator.dtype)
        means = pooled(x, self.settings.whole, grid=True)  # (P, whole, width)
        if self.stage in ("global-mlp", "local"):
            return self.projector(means)
        queries = self.projector(self.whole(x))
        if self.stage == "global-queries":
            return queries
        own = torch.full(means.shape[:2], MODALITIES.index("image"))
        with self.gate.context.having(valid=None, modality=own):  # the others are of the text
            g = self.gate(self.projector.norm(means)).dense()  # (P whole, 2)
        g = g.view(*means.shape[:2], 2).to(queries.dtype)
        return g[..., :1] * self.projector(means) + g[..., 1:] * queries

    def scores(self, local: Tensor, embeds: Tensor, asked: Tensor) -> Tensor:
        """s of a picture's local vectors for its question.

        local: (n, d); embeds: (T, d), of which `asked` (T,) bool are the question's.  -> (n,).
        A question without tokens: by the norm of the vectors, with a warning.
        """
        words = embeds[asked]
        if not len(words):
            what = "a question without words: local vectors are chosen by their norm"
            warnings.warn(what, UserWarning, stacklevel=2)
            return local.float().norm(dim=-1).softmax(0)
        unit = F.normalize(local.float(), dim=-1)
        close = (unit @ F.normalize(words.float(), dim=-1).T).mean(1)  # mean cosine, (n,)
        if self.training:
            close = close + NOISE / len(words) * self.noise.normal(len(close)).to(close)
        tau = 1 / len(words) if self.settings.tau is None else self.settings.tau
        return (close / tau).softmax(0)

    def forward(self, features: Tensor, views: Tensor, asked: AskedTokens | None) -> Vectors:
        self.check(features)
        counts = views.tolist()
        first = (views.cumsum(0) - views).to(features.device)
        whole = self.mixture(features[first])  # (P, whole, d)
        tile = torch.ones(len(features), dtype=torch.bool, device=features.device)
        tile[first] = False
        local = self.projector(self.local(features[tile].to(self.separator.dtype)))
        parts = local.split([n - 1 for n in counts])  # (tiles, queries, d) of each picture
        rows: list[Tensor] = []
        keep: list[Tensor] = []
        for number, (n, own) in enumerate(zip(counts, parts, strict=True)):
            rows.append(whole[number])
            seen = torch.ones(self.count(n), dtype=torch.bool, device=features.device)
            if n > 1:
                flat = own.flatten(0, 1)  # (tiles queries, d), as they lie in the picture
                chosen = self._chosen(flat, asked, number)
                rows += [self.separator[None], flat[chosen] if self.budget else flat]
                self._hide(seen, chosen)
            keep.append(seen)
        made = torch.tensor([len(k) for k in keep], device=features.device)
        return Vectors(torch.cat(rows), made, torch.cat(keep))

    def _chosen(self, local: Tensor, asked: AskedTokens | None, number: int) -> Tensor:
        """Which of a picture's local vectors stay, (n,) bool."""
        if asked is None:
            embeds = local.new_zeros(1, local.shape[1])
            s = self.scores(local, embeds, torch.zeros(1, dtype=torch.bool, device=local.device))
        else:
            s = self.scores(local, asked.embeds[number], asked.mask[number])
        room = None if self.budget is None else self.budget - self.settings.whole - 1
        return kept(s.detach(), self.settings.top_p, room)

    def _hide(self, seen: Tensor, chosen: Tensor) -> None:
        """Mark what is not to be read of [whole | separator | local]."""
        whole = self.settings.whole
        if self.budget is None:
            seen[whole + 1 :] = chosen
        if self.stage == "local":
            seen[:whole] = False
        elif self.stage != "joint":
            seen[whole:] = False


def kept(s: Tensor, top_p: float, room: int | None) -> Tensor:
    """Which of the scores stay: the `room` largest, or the fewest whose sum is above top_p.

    Of equal ones the first.  (n,) -> (n,) bool.
    """
    order = s.sort(descending=True, stable=True)
    if room is None:
        before = order.values.cumsum(0) - order.values  # the sum of those before each
        count = int((before.clamp(max=1) <= top_p).sum())  # rounded, a sum may be above 1
    else:
        count = min(room, len(s))
    found = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    found[order.indices[:count]] = True
    return found


@torch.no_grad()
def selection(model: nn.Module, row: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What is chosen of each picture of a processor's row: scores and whether they stay.

    Returns for each picture (tiles, queries) float and bool, tiles row by row; none for a picture
    without tiles.
    """
    view = tiled_view(model)
    host: Any = model
    ids = row["input_ids"].to(next(model.parameters()).device)
    embeds = host.get_input_embeddings()(ids.clamp(min=0))
    before, view.training = view.training, False
    try:
        features = row["image"].to(embeds.device, view.separator.dtype)
        found: list[tuple[Tensor, Tensor]] = []
        for part in features.split(row["image_views"].tolist()):
            local = view.projector(view.local(part[1:])).flatten(0, 1)
            if not len(local):
                continue
            s = view.scores(local, embeds, row["asked"].bool().to(ids.device))
            room = None if view.budget is None else view.budget - view.settings.whole - 1
            chosen = kept(s, view.settings.top_p, room)
            shape = (len(part) - 1, view.settings.queries)
            found.append((s.view(shape).cpu(), chosen.view(shape).cpu()))
        return found
    finally:
        view.training = before


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
