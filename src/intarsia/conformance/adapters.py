"""Laws of an adapter: the cell its config builds at a site, on its own, without a host."""

from __future__ import annotations

import copy

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ..core import Card, Cell
from ..core.errors import FoldError, TargetError
from ..hosts.folding.fold import fold_cell
from .cards import CARD_LAWS, tiny
from .cells import BATCH, DRAWS, HIDDEN, INPUTS, OUTPUTS, TOKENS, build, inputs, site, trained
from .made import read_again, require_own_draws, seeded
from .verdict import (
    Law,
    laws_of,
    require,
    require_close,
    require_equal,
    require_finite,
    require_tag,
)


def builds_a_cell(card: Card) -> None:
    """Check that an adapter's settings name its roles and position, and build a `Cell`."""
    config = tiny(card)
    holds = bool(config.roles) and config.position in ("parallel", "sequential")
    got = f"roles {config.roles}, position {config.position!r}"
    want = "some roles, and 'parallel' or 'sequential'"
    require(holds, got, want, "See intarsia.core.cell.Method.")
    # an adapter may be tried at a square layer and fail at the first rectangular one
    for square in (False, True):
        cell = config.build(site(card, square=square), generator=torch.Generator())
        holds = isinstance(cell, Cell) and any(True for _ in cell.parameters())
        require(holds, type(cell).__name__, "a Cell with parameters", "Derive it from Cell.")


def maps_the_widths(card: Card) -> None:
    """Check that the cell maps the layer's inputs to tensors of the width of its outputs.

    In training and in evaluation, for tokens, for images as maps and for plain vectors.
    """
    for mode in (True, False):
        cell = trained(card).train(mode)
        # tokens, images as maps, and plain vectors reach a cell
        for lead in ((BATCH,), (BATCH, TOKENS), (BATCH, 2, 3)):
            got = tuple(cell(inputs(card, *lead)).shape)
            require_equal(got, (*lead, OUTPUTS), "Act on the last axis only.")


def leaves_its_input_alone(card: Card) -> None:
    """Check that the cell does not write to its input, and passes a gradient on to it."""
    x = inputs(card).requires_grad_()
    before = x.detach().clone()
    # in training, where dropout or noise may be computed in place
    trained(card).train()(x).square().sum().backward()
    fix = "Use no in-place operation on what the cell is given."
    require(torch.equal(x.detach(), before), "an x that was written to", "x as given", fix)
    holds = x.grad is not None and bool((x.grad != 0).any())
    require(holds, "no gradient at the input", "one", "Do not detach x.")


def depends_on_its_seed_only(card: Card) -> None:
    """Check that the cell's first weights and draws follow from its generator, not torch's."""

    def weights_and_draws() -> list[Tensor]:
        """Build a cell; return its weights and its outputs in training."""
        cell = trained(card).train()
        drawn = [cell(inputs(card)).detach() for _ in range(4)]
        return [*cell.state_dict().values(), *drawn]

    got = "weights or draws that follow torch's global generator"
    require_own_draws(weights_and_draws, got, "Pass generator= on, also to the routers.")


def trains_every_parameter(card: Card) -> None:
    """Check that over many draws a finite gradient reaches every entry of the cell's weights."""
    cell = trained(card).train()
    generator = seeded(5)
    reached = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in cell.named_parameters()}
    # one draw does not reach every expert of a mixture
    for draw in range(DRAWS):
        # a random direction, because a sum of outputs may have no gradient
        y = cell(inputs(card, 8, seed=draw))
        cell.zero_grad()
        (y * torch.randn(y.shape, generator=generator)).sum().backward()
        for name, parameter in cell.named_parameters():
            if parameter.grad is not None:
                fix = "Look for a division or a logarithm."
                require_finite(parameter.grad, f"gradients of {name}", fix)
                reached[name] |= parameter.grad != 0
    unreached = {name: int((~mask).sum()) for name, mask in reached.items() if not mask.all()}
    fix = "Make them buffers, or let the forward use them."
    require(not unreached, f"entries that never get a gradient: {unreached}", "none", fix)


def survives_safetensors(card: Card) -> None:
    """Check that the cell's state dict holds all that decides its outputs, and only tensors."""
    cell, x = trained(card).eval(), inputs(card)
    # another seed, so that equal outputs can only come from the file
    again = build(card, seed=9).eval()
    again.load_state_dict(read_again(cell.state_dict()))
    with torch.no_grad():
        fix = "Register what the forward uses as buffers or parameters."
        require(torch.equal(again(x), cell(x)), "other outputs after loading", "the same bits", fix)


def copies_deeply(card: Card) -> None:
    """Check that a deep copy of the cell computes the same, and shares no weights with the cell."""
    cell, x = trained(card).eval(), inputs(card)
    copied = copy.deepcopy(cell)
    with torch.no_grad():
        # a copy that shares a tensor follows the original to zero
        before = cell(x)
        for parameter in cell.parameters():
            parameter.zero_()
        fix = "Share no tensor between a cell and its copy."
        require_close(copied(x), before, "outputs of a deep copy", fix)


def follows_dtype_and_device(card: Card) -> None:
    """Check that the cell computes in the dtype, and on the device, of its weights and inputs."""
    for dtype in (torch.float64, torch.bfloat16):
        for mode in (True, False):
            got = trained(card).to(dtype).train(mode)(inputs(card).to(dtype)).dtype
            fix = "Make new tensors in x's type."
            require(got == dtype, f"{got} for {dtype}", dtype, fix)
    # meta tensors refuse to meet CPU ones, as a GPU's do
    for mode in (True, False):
        cell = build(card).to("meta").train(mode)
        try:
            device = cell(inputs(card).to("meta")).device.type
        except (RuntimeError, NotImplementedError) as error:
            device = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        fix = "Make new tensors on x's device, and ask none for its value in the forward."
        require(device == "meta", device, "outputs on the input's device", fix)


def takes_one_sample(card: Card) -> None:
    """Check that the cell gives one output a token, for one sample and an empty batch too."""
    for mode in (True, False):
        # an empty batch comes from a mixture with an expert that has no token
        for count in (1, 0):
            got = tuple(trained(card).train(mode)(inputs(card, count, TOKENS)).shape)
            require_equal(got, (count, TOKENS, OUTPUTS), "Assume no size of the batch.")


def treats_samples_apart(card: Card) -> None:
    """Check that the cell's output for a sample, in evaluation, does not depend on its batch."""
    cell, x = trained(card).eval().double(), inputs(card).double()
    with torch.no_grad():
        # each sample as a batch of one
        alone = torch.cat([cell(row[None]) for row in x])
        fix = "Use no statistics of the batch in evaluation."
        require_close(alone, cell(x), "answers alone and in a batch", fix)


def works_under_autocast(card: Card) -> None:
    """Check that bf16 autocast hardly changes the cell's outputs, and its gradients are finite."""
    cell, x = trained(card).eval(), inputs(card)
    full = cell(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        # evaluated, to compare; below in training, for the gradients
        half = cell(x)
    got, pair = half.detach().bfloat16(), "answers with and without autocast"
    require_close(got, full.bfloat16(), pair, "Leave the types to autocast: use Cell.cast.")
    cell.train()
    with torch.autocast("cpu", torch.bfloat16):
        y = cell(x)
    y.float().square().sum().backward()
    for name, parameter in cell.named_parameters():
        if parameter.grad is not None:
            fix = "Compute the critical part in float32."
            require_finite(parameter.grad, f"gradients of {name}", fix)


def merges_into_one_cell(card: Card) -> None:
    """Check that merged() of the cell computes the same outputs as the cell does in evaluation.

    The merged cell must draw nothing in training, and share no weights with the cell.
    """
    cell, x = trained(card).double().eval(), inputs(card).double()
    with torch.no_grad():
        want = cell(x)
        # in training mode, where a merged cell must not draw any more
        merged = cell.merged().train()
        for _ in range(4):
            fix = "merged() must be deterministic and equal to the evaluation forward."
            require_close(merged(x), want, "the merged cell's outputs in training mode", fix)
        # a view of the cell would change with it
        if merged is not cell:
            for parameter in cell.parameters():
                parameter.zero_()
            name = "the merged cell's outputs after the cell has changed"
            require_close(merged(x), want, name, "Copy the tensors in merged().")


def evaluates_without_chance(card: Card) -> None:
    """Check that the cell's outputs in evaluation have the same bits, whatever was drawn before."""
    cell, x = trained(card), inputs(card)
    with torch.no_grad():
        first = cell.eval()(x)
        # a draw in training may leave a state behind that evaluation reads
        cell.train()(x)
        equal = all(torch.equal(cell.eval()(x), first) for _ in range(DRAWS))
    require(equal, "evaluations that differ", "the same bits", "Draw in training only.")


def zero_start_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "zero_start" exactly if the untrained cell adds nothing."""
    with torch.no_grad():
        # both modes: some cells scale their output in training alone
        outputs = [build(card).train(mode)(inputs(card)) for mode in (True, False)]
    starts_at_zero = not any(bool((y.abs() > 1e-6).any()) for y in outputs)
    require_tag(card, "zero_start", starts_at_zero, "an addition of zero before training")


def linear_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "linear" exactly if the cell's delta() is not None.

    delta() is then the matrix (outputs, inputs) by which the cell multiplies its input.
    """
    cell = trained(card).double().eval()
    # float64, so that only a wrong delta differs
    delta, x = cell.delta(), inputs(card).double()
    require_tag(card, "linear", delta is not None, "a delta()")
    if delta is not None:
        with torch.no_grad():
            fix = "delta() is the whole change of the weight, its scale included."
            require_close(x @ delta.T, cell(x), "x @ delta().T and forward(x)", fix)


def stochastic_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "stochastic" exactly if forwards in training differ."""
    cell, x = trained(card).train(), inputs(card)
    with torch.no_grad():
        first = cell(x)
        differ = any(not torch.equal(cell(x), first) for _ in range(DRAWS))
    require_tag(card, "stochastic", differ, "forwards in training that differ")


def folds_exactly_when_tagged(card: Card) -> None:
    """Check that the card has the tag "folds" exactly if a layer's weights can take the cell up."""
    # an MLP or a linear layer, as the method's roles say
    place = site(card)
    host: nn.Module = nn.Linear(INPUTS, OUTPUTS)
    if "mlp" in tiny(card).roles:
        host = Mlp(INPUTS, HIDDEN, OUTPUTS)
    cell = trained(card)
    try:
        fold_cell(host.double().eval(), cell, place.path, place.position)
        folds = True
    except (FoldError, TargetError):
        folds = False
    require_tag(card, "folds", folds, "a cell that becomes weights of its host")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
