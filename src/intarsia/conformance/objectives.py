"""Laws of an objective with a teacher: nothing to learn from oneself, and nothing of padding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card
from ..schedules import FixedMask, Masking
from ..train.objectives import plain
from ..train.outcome import Outcome, TargetLoss
from .cards import CARD_LAWS, tiny
from .made import moved, normal, torch_seed
from .sparse_schedules import adamw
from .verdict import Law, laws_of, require, require_close

WORDS, WIDTH, LENGTHS, IGNORED = 11, 6, (5, 3, 4), -100


class DropoutBlock(nn.Module):
    """A linear map behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.up = nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.up(self.drop(h)).tanh()


class SideBySide(nn.Module):
    """Tokens through blocks that stand side by side, so that their order means nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.blocks = nn.ModuleList(DropoutBlock() for _ in range(3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (B, T, WORDS).  attention_mask: unused; the objective reads it."""
        h = self.embed(input_ids)
        # blocks in parallel: their order in the list means nothing
        return self.head(torch.stack([block(h) for block in self.blocks]).sum(0))


def net(seed: int) -> nn.Module:
    """Return a model of this seed, deterministic in its forward."""
    with torch_seed(seed):
        return SideBySide().eval()


def batch(padding: int = 0) -> tuple[dict[str, Tensor], TargetLoss]:
    """Return a batch of rows of several lengths: keyword arguments of the model, and their loss.

    padding: the token id behind the end of shorter rows; its labels do not count.
    """
    # the last tokens of short rows are padding; their labels do not count
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = (normal(*mask.shape, seed=3) * 7).long().abs() % WORDS
    labels = torch.where(mask, ids.flip(1) % WORDS, IGNORED)
    x = {"input_ids": torch.where(mask, ids, padding), "attention_mask": mask.long()}

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), y.flatten(), ignore_index=IGNORED)

    return x, TargetLoss(loss, labels, read=lambda output, y: output[y != IGNORED])


def outcome(card: Card, student: nn.Module, teacher: nn.Module, padding: int = 0) -> Outcome:
    """Compute an objective on the batch of the tests, for a student model and its teacher.

    student, teacher: models as `net` makes them. padding: the token id behind the end of shorter
    rows. Returns the loss, 0-dimensional, with the student's logits and the loss's parts by name.
    """
    objective: Any = replace(tiny(card), teacher=teacher)
    return objective(student, *batch(padding))


def _gradients(result: Outcome, model: nn.Module) -> Mapping[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(result.loss, weights), strict=True))


def asks_nothing_of_its_teacher_s_copy(card: Card) -> None:
    """Check that with a copy of the student as teacher the loss is the labels' alone.

    Its gradients must be the labels' gradients, too.
    """
    student = net(0)
    distilled = outcome(card, student, copy.deepcopy(student))
    alone = plain(student, *batch())
    fix = "Compare what both say of the same batch."
    losses = distilled.loss.detach(), alone.loss.detach()
    require_close(*losses, "losses with oneself as teacher", fix)
    gradients = _gradients(alone, student)
    for name, value in _gradients(distilled, student).items():
        require_close(value, gradients[name], f"gradients of {name}", fix)


def follows_another_teacher(card: Card) -> None:
    """Check that under the objective another teacher gives a larger loss and other gradients."""
    student = net(0)
    distilled, alone = outcome(card, student, net(1)), plain(student, *batch())
    require(
        bool(distilled.loss > alone.loss), "a loss without the teacher", "more", "Add its term."
    )
    # a detached student would have the gradients of the labels alone
    differ = [_gradients(result, student)["blocks.0.up.weight"] for result in (distilled, alone)]
    equal = torch.equal(*differ)
    require(not equal, "gradients without the teacher", "others", "Keep the student's graph.")


def ignores_padding(card: Card) -> None:
    """Check that tokens outside the attention mask do not change the objective."""
    student, teacher = net(0), net(1)
    # two padding tokens: an objective that reads them gives two losses
    first, second = (outcome(card, student, teacher, token).loss.detach() for token in (0, 7))
    require_close(second, first, "losses by padding", "Take tokens with attention_mask 1 only.")


def counts_blocks_in_any_order(card: Card) -> None:
    """Check that the objective does not depend on the order in which parallel blocks are listed."""
    student, teacher = net(0), net(1)
    first = outcome(card, student, teacher).loss.detach()
    # both models get their blocks in reverse order
    for model in (student, teacher):
        model.blocks = nn.ModuleList(list(model.get_submodule("blocks").children())[::-1])
    second = outcome(card, student, teacher).loss.detach()
    require_close(second, first, "losses by the order of blocks", "Sum over blocks.")


def leaves_its_teacher_alone(card: Card) -> None:
    """Check that the objective computes its teacher in eval mode and leaves it as it was.

    The teacher gets no gradient and no new state, and is in training mode again afterwards.
    """
    # a teacher in training mode has dropout, so that its losses would differ
    student, teacher = net(0), net(1).train()
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    want = outcome(card, student, copy.deepcopy(teacher).eval()).loss.detach()
    result = outcome(card, student, teacher)
    require_close(result.loss.detach(), want, "losses by the teacher's mode", "Evaluate it.")
    result.loss.backward()
    learned = [n for n, p in teacher.named_parameters() if p.grad is not None]
    fix = "Compute its outputs under torch.no_grad()."
    require(not learned, f"a teacher's gradients of {learned}", "none", fix)
    state = teacher.state_dict()
    changed = [n for n, t in before.items() if not torch.equal(t, state[n])]
    # modules that the objective left in eval mode
    modes = [n for n, m in teacher.named_modules() if not m.training]
    require(not (changed or modes), f"changed {changed}, modes {modes}", "as before", "Undo it.")


def keeps_zeros(card: Card) -> None:
    """Check that a sparse student keeps its zeros under the objective while its weights learn."""
    student, teacher = net(0), moved(net(0))
    with torch.no_grad():
        for block in student.get_submodule("blocks").children():
            block.get_parameter("up.weight").view(-1)[::3] = 0
    masking = Masking(FixedMask(), student, 0)
    optimizer = masking.masked.optimizer(adamw)(student, 0.05, 0.1)
    before = {n: w.detach().clone() for n, w in masking.weights.items()}
    # a few steps of training with a fixed mask, as the loop makes them
    for step in range(3):
        outcome(card, student, teacher).loss.backward()
        masking.replaces(step, 3)
        optimizer.step()
        optimizer.zero_grad()
    for name in masking.weights:
        weight = student.get_parameter(name)
        filled = int(weight[before[name] == 0].count_nonzero())
        require(not filled, f"{filled} zeros of {name} filled", "none", "Write no weights.")
        require(not torch.equal(weight, before[name]), f"{name} as before", "a step", "Learn.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
