"""Visual prompt tuning, shallow and deep (arXiv:2203.12119)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...core.checks import at_least, below_one
from ...core.errors import ConfigError, TargetError
from .select import train_part

NAME = "prompts"


class Prompts(nn.Module):
    """Trained tokens that stand between the class token (and registers) and the patches.

    tokens: (1, n, d) for all blocks, or (depth, n, d), fresh ones for every block; drawn from
    U(-v, v) with v^2 = 6 / (patch + d), where a patch has 3 * side * side values, as in the
    released code; prefix: number of tokens that stand before them; first: number of the first block
    with them.
    """

    def __init__(
        self,
        shape: Sequence[int],
        prefix: int,
        bound: float,
        dropout: float,
        generator: torch.Generator,
        first: int = 0,
    ) -> None:
        """Draw the tokens, (1 or depth, n, d), from U(-bound, bound)."""
        super().__init__()
        self.prefix, self.first = prefix, first
        self.tokens = nn.Parameter(torch.empty(*shape))
        nn.init.uniform_(self.tokens, -bound, bound, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def insert(self, row: int, x: Tensor) -> Tensor:
        """Insert a row of prompts.  (B, prefix + patches, d) -> (B, prefix + n + patches, d)."""
        tokens = self.dropout(self.tokens[row].expand(len(x), -1, -1)).to(x.dtype)
        return torch.cat([x[:, : self.prefix], tokens, x[:, self.prefix :]], 1)

    def remove(self, x: Tensor) -> Tensor:
        """Remove the prompts; the inverse of insert."""
        after = self.prefix + self.tokens.shape[1]
        return torch.cat([x[:, : self.prefix], x[:, after:]], 1)


# hooks, not another forward: the modules, their names and gradient checkpointing stay the model's
def _insert_before_block(
    prompts: Prompts, row: int, block: nn.Module, args: tuple[Any, ...]
) -> Any:
    return (prompts.insert(row, args[0]), *args[1:])


def _remove_after_block(prompts: Prompts, block: nn.Module, args: Any, out: Tensor) -> Tensor:
    return prompts.remove(out)


def add_prompts(
    model: nn.Module,
    *,
    prompts: int = 10,
    deep: bool = False,
    dropout: float = 0.0,
    last_blocks: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Add trained prompt tokens to a frozen vision transformer, in place; the head is trained, too.

    prompts: how many, 0 for none.
    deep: each block has prompts of its own, which replace those before; False = the prompts of the
    first block pass through all blocks.
    last_blocks: deep prompts only in so many last blocks (the paper's prompt depth); 0 = in all.
    Prompts are removed before the last norm, so that any pooling reads the same tokens as before;
    the released code keeps them there and reads the class token, which is the same.

    Raises: TargetError for anything but a timm VisionTransformer, or one with prompts; ConfigError
    for settings that cannot be.
    Not with `forward_intermediates`: its maps have no place for shallow prompts.
    """
    if not isinstance(model, VisionTransformer) or hasattr(model, NAME):
        unsuitable = "one with prompts" if hasattr(model, NAME) else type(model).__name__
        subject = "model for prompts"
        fix = "Use a ViT, DeiT or DINOv2 of timm, or another method: --method ssf."
        raise TargetError(
            subject, got=unsuitable, want="a timm VisionTransformer without prompts", fix=fix
        )
    at_least("prompts", prompts, 0, "Try 10.")
    below_one("dropout", dropout)
    stack = list(cast(nn.Sequential, model.blocks))
    if not 0 <= last_blocks <= (len(stack) if deep else 0):
        subject = "last_blocks"
        want = f"0 ... {len(stack)}" if deep else "0: shallow prompts stand before the first"
        raise ConfigError(subject, got=last_blocks, want=want, fix="0 stands for all of them.")
    # everything is frozen but the head; then the prompts join
    train_part(model, "linear")
    if not prompts:
        return model
    first = len(stack) - last_blocks if last_blocks else 0
    stack = stack[first:]
    patch = cast(Any, model.patch_embed).proj.weight[0].numel()
    shape = (len(stack) if deep else 1, prompts, model.embed_dim)
    # Xavier's uniform bound of a patch embedding, as in the released code
    bound, generator = (6 / (patch + model.embed_dim)) ** 0.5, torch.Generator().manual_seed(seed)
    tokens = Prompts(shape, model.num_prefix_tokens, bound, dropout, generator, first)
    tokens.to(next(model.parameters()).device).train(model.training)
    model.add_module(NAME, tokens)
    for row, block in enumerate(stack if deep else stack[:1]):
        block.register_forward_pre_hook(partial(_insert_before_block, tokens, row))
    # deep prompts live for one block, shallow ones until the last
    for block in stack if deep else stack[-1:]:
        block.register_forward_hook(partial(_remove_after_block, tokens))
    return model
