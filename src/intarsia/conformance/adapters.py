"""Laws of an adapter: the cell its config builds at a site, on its own, without a host."""

from __future__ import annotations

import copy

import safetensors.torch
import torch
from torch import Tensor

from ..core import Card, Cell
from .adapter_tags import (
    folds_exactly_when_tagged,
    linear_exactly_when_tagged,
    stochastic_exactly_when_tagged,
    zero_start_exactly_when_tagged,
)
from .cards import CARD_LAWS, tiny
from .cells import BATCH, DRAWS, OUTPUTS, TOKENS, build, inputs, site, trained
from .verdict import Law, require, require_close


def builds_a_cell(card: Card) -> None:
    """roles, position and build are as `Method` says; rectangular and square sites both do."""
    config = tiny(card)
    require(
        bool(config.roles) and config.position in ("parallel", "sequential"),
        got=f"roles {config.roles}, position {config.position!r}",
        want="some roles, and 'parallel' or 'sequential'",
        fix="See intarsia.core.cell.Method.",
    )
    for square in (False, True):
        cell = config.build(site(card, square=square), generator=torch.Generator())
        require(
            isinstance(cell, Cell) and any(True for _ in cell.parameters()),
            got=type(cell).__name__,
            want="a Cell with parameters",
            fix="Derive it from Cell.",
        )


def maps_the_widths(card: Card) -> None:
    """(..., reads) -> (..., outputs), whatever axes are in front, in training and evaluation."""
    for mode in (True, False):
        cell = trained(card).train(mode)
        for lead in ((BATCH,), (BATCH, TOKENS), (BATCH, 2, 3)):
            got = tuple(cell(inputs(card, *lead)).shape)
            want = (*lead, OUTPUTS)
            require(got == want, got=got, want=want, fix="Act on the last axis only.")


def leaves_its_input_alone(card: Card) -> None:
    """x is not written to, and gets a gradient: layers below an adapter may be trained too."""
    x = inputs(card).requires_grad_()
    before = x.detach().clone()
    trained(card).train()(x).square().sum().backward()
    require(
        torch.equal(x.detach(), before),
        got="an x that was written to",
        want="x as given",
        fix="Use no in-place operation on what the cell is given.",
    )
    require(
        x.grad is not None and bool((x.grad != 0).any()),
        got="no gradient at the input",
        want="one",
        fix="Do not detach x.",
    )


def depends_on_its_seed_only(card: Card) -> None:
    """First weights and draws follow from the generator, not from torch's own."""
    found: list[list[Tensor]] = []
    for seed in (3, 4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cell = trained(card).train()
            drawn = [cell(inputs(card)).detach() for _ in range(4)]
            found.append([*cell.state_dict().values(), *drawn])
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    require(
        same,
        got="weights or draws that follow torch's global generator",
        want="all randomness from the generator that build was given",
        fix="Pass generator= on, also to the routers.",
    )


def trains_every_parameter(card: Card) -> None:
    """Over many draws, a finite gradient reaches every entry of every parameter."""
    cell = trained(card).train()
    generator = torch.Generator().manual_seed(5)
    reached = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in cell.named_parameters()}
    for draw in range(DRAWS):
        y = cell(inputs(card, 8, seed=draw))
        cell.zero_grad()
        (y * torch.randn(y.shape, generator=generator)).sum().backward()
        for name, parameter in cell.named_parameters():
            if parameter.grad is not None:
                finite = bool(torch.isfinite(parameter.grad).all())
                require(
                    finite,
                    got=f"a gradient of {name} that is not finite",
                    want="numbers",
                    fix="Look for a division or a logarithm.",
                )
                reached[name] |= parameter.grad != 0
    left = {name: int((~seen).sum()) for name, seen in reached.items() if not seen.all()}
    require(
        not left,
        got=f"entries that never get a gradient: {left}",
        want="none",
        fix="Make them buffers, or let the forward use them.",
    )


def survives_safetensors(card: Card) -> None:
    """state_dict holds all that decides the outputs, and only tensors."""
    cell, x = trained(card).eval(), inputs(card)
    state = {name: tensor.contiguous() for name, tensor in cell.state_dict().items()}
    again = build(card, seed=9).eval()
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    with torch.no_grad():
        require(
            torch.equal(again(x), cell(x)),
            got="other outputs after loading",
            want="the same bits",
            fix="Register what the forward uses as buffers or parameters.",
        )


def copies_deeply(card: Card) -> None:
    """A deep copy says the same, and does not change with its original."""
    cell, x = trained(card).eval(), inputs(card)
    twin = copy.deepcopy(cell)
    with torch.no_grad():
        before = cell(x)
        for parameter in cell.parameters():
            parameter.zero_()
        require_close(
            twin(x),
            before,
            what="outputs of a deep copy",
            fix="Share no tensor between a cell and its copy.",
        )


def follows_dtype_and_device(card: Card) -> None:
    """A cell in a type, given that type, answers in it; on another device nothing stays behind."""
    for dtype in (torch.float64, torch.bfloat16):
        for mode in (True, False):
            got = trained(card).to(dtype).train(mode)(inputs(card).to(dtype)).dtype
            fix = "Make new tensors in x's type."
            require(got == dtype, got=f"{got} for {dtype}", want=dtype, fix=fix)
    # meta tensors refuse to meet CPU ones, as a GPU's do
    for mode in (True, False):
        cell = build(card).to("meta").train(mode)
        try:
            device = cell(inputs(card).to("meta")).device.type
        except (RuntimeError, NotImplementedError) as error:
            device = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        require(
            device == "meta",
            got=device,
            want="outputs on the input's device",
            fix="Make new tensors on x's device, and ask none for its value in the forward.",
        )


def takes_one_sample(card: Card) -> None:
    """A batch of one is a batch, and an empty one gives an empty answer."""
    for mode in (True, False):
        for count in (1, 0):
            got = tuple(trained(card).train(mode)(inputs(card, count, TOKENS)).shape)
            want = (count, TOKENS, OUTPUTS)
            require(got == want, got=got, want=want, fix="Assume no size of the batch.")


def treats_samples_apart(card: Card) -> None:
    """In evaluation a sample's answer does not depend on its neighbours."""
    cell, x = trained(card).eval().double(), inputs(card).double()
    with torch.no_grad():
        alone = torch.cat([cell(row[None]) for row in x])
        require_close(
            alone,
            cell(x),
            what="answers alone and in a batch",
            fix="Use no statistics of the batch in evaluation.",
        )


def works_under_autocast(card: Card) -> None:
    """bf16 autocast: a half answer near the full one, float32 gradients."""
    cell, x = trained(card).eval(), inputs(card)
    full = cell(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = cell(x)
    require_close(
        half.detach().bfloat16(),
        full.bfloat16(),
        what="answers with and without autocast",
        fix="Leave the types to autocast: use Cell.cast.",
    )
    cell.train()
    with torch.autocast("cpu", torch.bfloat16):
        y = cell(x)
    y.float().square().sum().backward()
    for name, parameter in cell.named_parameters():
        finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        require(
            finite,
            got=f"a gradient of {name} that is not finite",
            want="numbers",
            fix="Compute the critical part in float32.",
        )


def merges_into_one_cell(card: Card) -> None:
    """merged() says what the cell says in evaluation, without chance, and is no view of it."""
    cell, x = trained(card).double().eval(), inputs(card).double()
    with torch.no_grad():
        want = cell(x)
        merged = cell.merged().train()
        for _ in range(4):
            require_close(
                merged(x),
                want,
                what="the merged cell's outputs in training mode",
                fix="merged() must be deterministic and equal to the evaluation forward.",
            )
        if merged is not cell:
            for parameter in cell.parameters():
                parameter.zero_()
            require_close(
                merged(x),
                want,
                what="the merged cell's outputs after the cell has changed",
                fix="Copy the tensors in merged().",
            )


def evaluates_without_chance(card: Card) -> None:
    """Two forwards in evaluation are the same bits, whatever was drawn in training before."""
    cell, x = trained(card), inputs(card)
    with torch.no_grad():
        first = cell.eval()(x)
        cell.train()(x)
        same = all(torch.equal(cell.eval()(x), first) for _ in range(DRAWS))
    require(same, got="evaluations that differ", want="the same bits", fix="Draw in training only.")


LAWS: tuple[Law, ...] = (
    *CARD_LAWS,
    builds_a_cell,
    maps_the_widths,
    leaves_its_input_alone,
    depends_on_its_seed_only,
    trains_every_parameter,
    survives_safetensors,
    copies_deeply,
    follows_dtype_and_device,
    takes_one_sample,
    treats_samples_apart,
    works_under_autocast,
    merges_into_one_cell,
    evaluates_without_chance,
    zero_start_exactly_when_tagged,
    linear_exactly_when_tagged,
    stochastic_exactly_when_tagged,
    folds_exactly_when_tagged,
)
