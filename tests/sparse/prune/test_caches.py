"""What a model keeps for its next token does not change what calibration sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prune_models import rows, seeded
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import intarsia
from intarsia.core.modes import without_caches
from intarsia.methods.gqsa.gqsa import Gqsa
from intarsia.methods.gqsa.stages import Tuning
from intarsia.sparse.swap.compress import compress
from intarsia_lab.pages.host_models import HOSTS, host

# the others have nothing to keep
STATELESS = {"ViT", "SigLIP", "CLIP", "DistilBERT", "DeBERTa", "DeBERTa v2", "ModernBERT"}
STATELESS |= {"MPT", "Wav2Vec2"}
CACHING = [name for name in HOSTS if name not in STATELESS and not name.startswith("timm")]


def gpt2() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def calibration(name: str) -> list[dict[str, Tensor]]:
    """Return two batches of a tiny host, of as many rows and tokens as calibration asks for."""
    batches: list[dict[str, Tensor]] = []
    for seed in (1, 2):
        draw, batch = seeded(seed), dict(HOSTS[name].batch())
        for key, value in batch.items():
            if value.is_floating_point():
                batch[key] = torch.randn(4, *value.shape[1:], generator=draw)
            else:
                more = torch.randint(5, 60, (4, 32), generator=draw)
                batch[key] = torch.cat([value.repeat(2, 1), more], 1)
        batches.append(batch)
    return batches


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CACHING)
def test_masks_do_not_depend_on_use_cache(name: str) -> None:
    cached, plain = host(name), host(name)
    configs: list[Any] = [getattr(module, "config", None) for module in cached.modules()]
    before = [getattr(config, "use_cache", None) for config in configs]
    assert any(before)
    intarsia.sparsify(cached, intarsia.Wanda(0.5), calibration(name))
    assert [getattr(config, "use_cache", None) for config in configs] == before
    with without_caches(plain):
        intarsia.sparsify(plain, intarsia.Wanda(0.5), calibration(name))
    want = plain.state_dict()
    for key, value in cached.state_dict().items():
        assert torch.equal(value != 0, want[key] != 0), key


def test_gpt2_is_tuned_on_what_its_blocks_read_without_a_cache() -> None:
    method = Gqsa(tuning=Tuning(blocks=4, weights=0.5, model=1))
    cached, plain = gpt2(), gpt2()
    plain.config.use_cache = False
    packed = [compress(model, method, rows(), force=True) for model in (cached, plain)]
    want = packed[1].state_dict()
    for key, value in packed[0].state_dict().items():
        assert torch.equal(value, want[key]), key
