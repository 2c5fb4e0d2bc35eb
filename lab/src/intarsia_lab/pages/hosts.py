"""Trials of every adapter, and of upcycling, on tiny models; `python -m` writes their page."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from intarsia.catalog import cards
from intarsia.core import Card
from intarsia.core.errors import FoldError, IntarsiaError
from intarsia.core.files import write_text
from intarsia.folders.saved import load, save
from intarsia.folders.verbs import adapt, upcycle
from intarsia.hosts.anatomy.compare import outputs, tensors
from intarsia.hosts.anatomy.own_weights import own_parameters
from intarsia.hosts.folding.fold import fold

from .host_models import HOSTS, Batch, host
from .native_hosts import section
from .trials import Trials

UPCYCLE = "upcycle"  # the last column
ANSWERS = ("yes", "folds")  # any other answer is a reason


def said(model: nn.Module, batch: Batch) -> Tensor:
    """Return a model's output in evaluation mode: its first tensor.  batch: inputs by name."""
    # models of timm take one input, "x"; models of transformers take names
    inputs = next(iter(batch.values())) if "x" in batch else batch
    return outputs(model.eval(), inputs)[0]


def one_step(model: nn.Module, batch: Batch) -> None:
    """Take one optimiser step (AdamW) on the trainable parameters of a model.

    The loss is the mean square of the outputs. batch: inputs by name.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    out = model.train()(*batch.values()) if "x" in batch else model.train()(**batch)
    # two outputs at most: of CLIP, the scores of both sides
    losses = [t.square().mean() for t in tensors(out)[:2] if t.is_floating_point()]
    torch.stack(losses).sum().backward()
    optimizer.step()
    model.eval()


def works(card: Card, name: str) -> str:
    """Try an adapter on a tiny model: train a step, save, load, fold; return how far it comes.

    card: the adapter's registered description, used with its default settings; name: of the model
    in HOSTS. Returns "folds" if all works, "yes" if all but the fold does. Raises: the library's
    error where the adapter is refused; AssertionError where it does something else than it should.
    """
    batch, model = HOSTS[name].batch(), host(name)
    before = said(model, batch)
    # step 1: a copy of all weights, to find those that should not move
    frozen = {n: p.detach().clone() for n, p in own_parameters(model).items()}
    adapted = adapt(model, card.config())
    # an adapter that says it starts at nothing must not change an output
    if "zero_start" in card.tags:
        assert torch.allclose(said(adapted, batch), before, atol=1e-5), "other outputs at the start"
    # step 2: train; the adapter and the head may change, nothing else
    one_step(adapted, batch)
    heads = tuple(f"{h}." for h in adapted.peft_config["default"].modules_to_save or ())  # pyright: ignore
    moved = [
        n
        for n, p in own_parameters(adapted).items()
        if not n.startswith(heads or ("-",)) and not torch.equal(p, frozen[n])
    ]
    assert not moved, f"frozen weights moved: {moved[:2]}"
    after = said(adapted, batch)
    assert not torch.allclose(after, before, atol=1e-6), "nothing was trained"
    # step 3: save, and load into a fresh model
    with tempfile.TemporaryDirectory() as folder:
        again = load(host(name), save(adapted, f"{folder}/saved"))
    assert torch.allclose(said(again, batch), after, rtol=1e-4, atol=1e-5), "loaded: other outputs"
    if "folds" not in card.tags:
        return "yes"
    # step 4: fold into a stock model
    inputs = next(iter(batch.values())) if "x" in batch else batch
    try:
        stock = fold(adapted, inputs=inputs, report=lambda _: None)
    except FoldError as error:
        assert "differ" not in str(error), error
        return "yes"
    assert torch.allclose(said(stock, batch), after, rtol=1e-3, atol=1e-4), "another fold"
    return "folds"


def upcycles(name: str) -> str:
    """Upcycle a tiny model by the defaults, train it a step, save it and load it; return "yes".

    Upcycling replaces the MLPs by mixtures of experts. name: of the model in HOSTS. Raises: the
    library's error where it is refused; AssertionError where it does something else than it should.
    """
    batch, model = HOSTS[name].batch(), host(name)
    before = said(model, batch)
    mixed = upcycle(model)
    assert torch.allclose(said(mixed, batch), before, rtol=1e-3, atol=1e-4), "other outputs"
    one_step(mixed, batch)
    after = said(mixed, batch)
    assert not torch.allclose(after, before, atol=1e-6), "nothing was trained"
    with tempfile.TemporaryDirectory() as folder:
        again = load(host(name), save(mixed, f"{folder}/saved"))
    assert torch.allclose(said(again, batch), after, rtol=1e-4, atol=1e-5), "loaded: other outputs"
    return "yes"


INTRO = """# Which methods on which models

Every adapter with its default settings on a tiny random model of each family, tried when
`python -m intarsia_lab.pages.hosts` wrote this page: adapted, one training step that changes the
adapter and the head alone, saved, loaded into a fresh model with the same outputs, folded. Sizes
are small, structures are those of the libraries: a host is known by its modules, not by its name.

**folds**: into a stock model of the same outputs. **yes**: all of it but the fold, which is refused
(a gated MLP, an activation or a norm that the MLP does not have). A number: it is refused, and the
error says why; see below the table.

What is left open is chosen by the host. A bottleneck (and MoSA, AdaMix, Bi-Adapter over it) sits
beside the MLP; behind it, inside its branch, where the MLP is two layers of the block (BERT,
RoBERTa, Whisper); and behind the block in a convolutional net. Its norm is computed from the
LayerNorm before the MLP; where there is none it is an RMSNorm in a host of RMSNorms, a LayerNorm
in others, and none over the channels of pictures.

**upcycle** replaces the MLPs by mixtures of experts, or the gates of a sparse model, with the
outputs of before; trained a step, saved and loaded. Experts see one token at a time, so that an MLP
with a convolution or a batch norm inside cannot be one.

`intarsia.adapt(model)` takes LoRA, `intarsia.adapt(model, "mosa")` a method by its name.
"""


def page(report: Callable[[str], None] = lambda _: None) -> str:
    """Return the text of docs/hosts.md: which adapters work on which families of models, by trials.

    Trials with unchanged code are read from a store; report: gets a line for each that runs.
    """
    adapters, reasons, trials = cards("adapter"), list[str](), Trials(__file__, report)
    columns = {
        c.key: trials("column", c, run=partial(_column, partial(works, c))) for c in adapters
    }
    # upcycling is tried like an adapter, in the last column
    columns[UPCYCLE] = trials(UPCYCLE, run=partial(_column, upcycles))
    lines = [INTRO, f"| | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name in HOSTS:
        cells = [_cell(column[name], reasons) for column in columns.values()]
        lines.append(f"| **{name}** | {' | '.join(cells)} |")
    # numbers in the table refer to this list of reasons
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines) + f"\n{section()}"


def _column(trial: Callable[[str], str]) -> dict[str, str]:
    """Return the answer of a trial on every model of HOSTS, by the model's name."""
    return {name: _answer(trial, name) for name in HOSTS}


def _answer(trial: Callable[[str], str], name: str) -> str:
    """Return what a trial found for a model, or the reason why the library refused it."""
    try:
        return trial(name)
    except IntarsiaError as error:
        # the same for all models but for paths and names
        got = re.sub(r"'[\w.]*'", "…", str(error.got)).replace(type(host(name)).__name__, "a model")
        return f"got {got}; want {error.want}"


def _cell(answer: str, reasons: list[str]) -> str:
    """Return what stands in the table for an answer: the word, or the number of a reason."""
    if answer in ANSWERS:
        return answer
    if answer not in reasons:
        reasons.append(answer)
    return str(reasons.index(answer) + 1)


def write(docs: Path) -> None:
    """Write the page.  docs: the folder of the documentation."""
    write_text(docs / "hosts.md", page(print))


if __name__ == "__main__":
    write(Path("docs"))
