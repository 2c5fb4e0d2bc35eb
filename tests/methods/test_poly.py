"""Poly and MHR: means of skills by task, against PEFT's own layer and against LoRAs."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.poly.config import PolyConfig
from peft.tuners.poly.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core import Site
from intarsia.core.errors import ConfigError, FoldError, ShapeError, TargetError
from intarsia.methods import Mosa, Poly
from intarsia.mixtures import SkillsCell
from intarsia.routers import TaskRouter

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
INPUTS, OUTPUTS = 12, 18


def cell(
    seed: int = 0, inputs: int = INPUTS, outputs: int = OUTPUTS, **settings: int
) -> SkillsCell:
    """A cell in evaluation mode, all of its parameters random."""
    generator = torch.Generator().manual_seed(seed)
    config = Poly(**({"tasks": 3, "skills": 4, "rank": 2} | settings))  # pyright: ignore
    poly_cell = config.build(Site("b.fc", INPUTS, OUTPUTS), generator=generator).double().eval()
    for parameter in poly_cell.parameters():
        nn.init.normal_(parameter, generator=generator)
    return poly_cell


def added(poly_cell: SkillsCell, x: Tensor, ids: list[int]) -> Tensor:
    with intarsia.gating.task_ids(poly_cell, torch.tensor(ids)):
        return poly_cell(x)


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def naive(poly_cell: SkillsCell, x: Tensor, ids: list[int]) -> Tensor:
    """Head by head and skill by skill, sample by sample."""
    heads, skills = poly_cell.down.shape[:2]
    rows = []
    for sample, task in zip(x, ids, strict=True):
        odds = poly_cell.router.logits[task].sigmoid()
        w = odds / odds.sum(-1, keepdim=True)
        down = [sum(w[q, s] * poly_cell.down[q, s] for s in range(skills)) for q in range(heads)]
        up = [sum(w[q, s] * poly_cell.up[q, s] for s in range(skills)) for q in range(heads)]
        hidden = sum(
            part @ a.T
            for part, a in zip(sample.chunk(heads, -1), down, strict=True)  # pyright: ignore
        )
        rows.append(torch.cat([hidden @ b.T for b in up], -1))  # pyright: ignore
    return poly_cell.scale * torch.stack(rows)


@given(
    st.sampled_from([1, 2, 3, 6]), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4),
    st.booleans(), st.data(),
)  # fmt: skip
def test_the_fast_path_is_the_naive_one(
    heads: int, skills: int, rank: int, tasks: int, tokens: bool, data: st.DataObject
) -> None:
    poly_cell = cell(heads=heads, skills=skills, rank=rank, tasks=tasks)
    ids = data.draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=4))
    x = normal(len(ids), *((3,) if tokens else ()), INPUTS).requires_grad_()
    got, want = added(poly_cell, x, ids), naive(poly_cell, x, ids)
    assert_close(got, want)
    weight = normal(*got.shape, seed=2)
    inputs = [x, *poly_cell.parameters()]
    assert_close(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), inputs),
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_it_is_peft_poly_with_the_same_weights(heads: int) -> None:
    poly_cell = cell(heads=heads)
    theirs = PeftLinear(
        nn.Linear(INPUTS, OUTPUTS),
        "default",
        PolyConfig(r=2, n_tasks=3, n_skills=4, n_splits=heads, init_weights=False),
    )
    theirs = theirs.double().eval()
    with torch.no_grad():
        theirs.poly_lora_A["default"].copy_(poly_cell.down.mT)  # theirs: (heads, skills, d, r)
        theirs.poly_lora_B["default"].copy_(poly_cell.up.mT)
        theirs.poly_router["default"].module_logits.copy_(poly_cell.router.logits.flatten(1))
    poly_cell.scale = 1 / 2  # theirs is 1 / r, which is alpha=1
    x, ids = normal(5, 4, INPUTS), [2, 0, 1, 1, 2]
    want = theirs(x, task_ids=torch.tensor(ids)) - theirs.base_layer(x)
    assert_close(added(poly_cell, x, ids), want)
    assert Poly(rank=2, alpha=1).build(
        Site("b", 4, 4), generator=torch.Generator()
    ).scale == 1 / 2  # fmt: skip


def test_one_skill_is_lora_from_the_same_seed() -> None:
    site = Site("b.fc", INPUTS, OUTPUTS)
    poly = Poly(tasks=2, skills=1, rank=3).build(site, generator=torch.Generator().manual_seed(5))
    lora = intarsia.Lora(3).build(site, generator=torch.Generator().manual_seed(5))
    assert_close(poly.down[0, 0] * 3**0.5, lora.down.weight)  # the released code's start
    with torch.no_grad():
        lora.down.weight.copy_(poly.down[0, 0])
        poly.up.normal_()
        lora.up.weight.copy_(poly.up[0, 0])
    x = normal(4, 3, INPUTS).float()
    for mode in (True, False):
        assert_close(added(poly.train(mode), x, [0, 1, 1, 0]), lora(x))


def test_each_task_with_a_skill_of_its_own_is_a_lora_for_each_task() -> None:
    poly_cell = cell(tasks=3, skills=3)
    with torch.no_grad():
        poly_cell.router.logits.copy_(torch.where(torch.eye(3).bool(), 40.0, -800.0)[:, None])
    x = normal(3, 2, INPUTS)
    want = [x[t] @ (poly_cell.up[0, t] @ poly_cell.down[0, t]).T for t in range(3)]
    assert_close(added(poly_cell, x, [0, 1, 2]), torch.stack(want))


def test_heads_that_agree_are_poly() -> None:
    poly, heads = cell(heads=1), cell(heads=3)
    with torch.no_grad():
        # Poly's A (1, S, r, d) cut into heads along d; its B (1, S, d, r) likewise
        heads.down.copy_(poly.down[0].unflatten(-1, (3, -1)).permute(2, 0, 1, 3))
        heads.up.copy_(poly.up[0].unflatten(1, (3, -1)).movedim(1, 0))
        heads.router.logits.copy_(poly.router.logits.expand(-1, 3, -1))
    x, ids = normal(4, 3, INPUTS), [0, 2, 1, 0]
    assert_close(added(heads, x, ids), added(poly, x, ids))


def test_equal_shares_are_the_means_of_a_and_b_not_of_their_products() -> None:
    poly_cell = cell(heads=2)
    nn.init.zeros_(poly_cell.router.logits)
    down = poly_cell.down.mean(1).permute(1, 0, 2).flatten(1)
    up = poly_cell.up.mean(1).flatten(0, 1)
    x = normal(2, 3, INPUTS)
    assert_close(added(poly_cell, x, [0, 2]), x @ (up @ down).T)
    poly = cell(heads=1)
    nn.init.zeros_(poly.router.logits)
    of_products = (poly.up[0] @ poly.down[0]).mean(0)
    assert not torch.allclose(added(poly, x, [0, 2]), x @ of_products.T)


def test_heads_cost_no_adapter_parameters() -> None:
    counts = {q: cell(heads=q) for q in (1, 2, 6)}
    sizes = {poly_cell.down.numel() + poly_cell.up.numel() for poly_cell in counts.values()}
    assert sizes == {4 * 2 * (INPUTS + OUTPUTS)}
    assert [poly_cell.router.logits.numel() for poly_cell in counts.values()] == [12, 24, 72]
    # as many as one LoRA of skills times the rank
    lora = intarsia.Lora(8).build(Site("b", INPUTS, OUTPUTS), generator=torch.Generator())
    assert sum(p.numel() for p in lora.parameters()) in sizes


@pytest.mark.parametrize("heads", [1, 4])
def test_skills_start_by_the_whole_width_with_any_heads_and_add_nothing(heads: int) -> None:
    poly_cell = Poly(tasks=2, heads=heads, rank=16).build(
        Site("b", 64, 64), generator=torch.Generator().manual_seed(0)
    )
    bound = (3 * 64) ** -0.5
    assert 0.95 * bound < float(poly_cell.down.detach().abs().max()) <= bound
    assert not poly_cell.up.any() and poly_cell.router.logits.abs().max() <= 1e-3
    (skills,) = {len(poly_cell.down.flatten(0, 1).unique(dim=0))}
    assert skills == 4 * heads  # none is another's copy


def test_noise_makes_training_stochastic_and_evaluation_not() -> None:
    poly_cell, x, ids = cell(noise=True), normal(4, INPUTS), [0, 1, 2, 0]
    first = added(poly_cell, x, ids)
    assert torch.equal(added(poly_cell, x, ids), first)
    assert not torch.equal(added(poly_cell.train(), x, ids), added(poly_cell, x, ids))
    assert torch.equal(added(poly_cell.eval(), x, ids), first)
    calm = cell()
    assert torch.equal(added(calm.train(), x, ids), added(calm.eval(), x, ids))


def test_the_delta_of_a_task_is_what_its_samples_get() -> None:
    poly_cell, x = cell(heads=3), normal(2, INPUTS)
    for task in range(3):
        assert_close(added(poly_cell, x, [task, task]), x @ poly_cell.delta(task).T)
        assert_close(poly_cell.of_task(task)(x), x @ poly_cell.delta(task).T)
    with refused(FoldError, what="merging Poly at 'b.fc'"):
        poly_cell.delta()
    with refused(FoldError, what="merging Poly at 'b.fc'"):
        poly_cell.merged()
    with refused(ConfigError, what="task_ids", got="3 ... 3"):
        poly_cell.delta(3)
    mean = cell(unknown="mean")  # pyright: ignore
    assert_close(mean(x), x @ mean.delta().T)


@pytest.mark.parametrize(
    ("settings", "error", "field"),
    [
        ({"heads": 4}, TargetError, "heads at 'b.fc'"),
        ({"rank": 13}, TargetError, "rank at 'b.fc'"),
        ({"rank": 0}, ConfigError, "rank"),
        ({"tasks": 0}, ConfigError, "tasks"),
        ({"skills": 0}, ConfigError, "skills"),
        ({"unknown": "x"}, ConfigError, "unknown"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, int], error: type[Exception], field: str
) -> None:
    with refused(error, what=field):
        cell(**settings)


def test_a_fused_layer_is_adapted_whole() -> None:
    with refused(TargetError, what="role 'qv' at 'a.qkv'"):
        Poly(roles=("qv",)).build(Site("a.qkv", 24, 72), generator=torch.Generator())


def vit(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    host = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5
    )
    config = Poly(**({"tasks": 3, "heads": 2, "rank": 2} | settings))  # pyright: ignore
    return stirred(intarsia.adapt(host, config))


def stirred(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_timm_model_answers_each_image_by_its_task() -> None:
    model, ids = vit(), torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        with intarsia.gating.task_ids(model, ids):
            together = model(IMAGES)
        for i, task in enumerate(ids):
            with intarsia.gating.task_ids(model, task[None]):
                assert_close(model(IMAGES[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)
        with intarsia.gating.task_ids(model, ids.flip(0)):
            assert not torch.allclose(model(IMAGES), together, atol=1e-3)


def test_windows_of_a_swin_follow_their_image() -> None:
    torch.manual_seed(0)
    host = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(1, 2),
        num_heads=(1, 2), num_classes=5,
    )  # fmt: skip
    model = stirred(intarsia.adapt(host, Poly(tasks=3, rank=2)))
    ids = torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        with intarsia.gating.task_ids(model, ids):
            together = model(IMAGES)
        for i, task in enumerate(ids):
            with intarsia.gating.task_ids(model, task[None]):
                assert_close(model(IMAGES[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_ids_of_another_number_than_the_batch_are_refused() -> None:
    model = vit()
    with (
        intarsia.gating.task_ids(model, torch.tensor([0, 1])),
        refused(ShapeError, what="task_ids"),
    ):
        model(IMAGES)
    with refused(ConfigError, what="task_ids", got="none"):
        model(IMAGES)


def test_a_recomputed_forward_meets_the_same_tasks_and_draws() -> None:
    ids = torch.tensor([0, 2, 1, 2])
    gradients = []
    for recompute in (False, True):
        model = vit().train()
        model.get_base_model().set_grad_checkpointing(recompute)  # pyright: ignore
        with intarsia.gating.task_ids(model, ids):
            loss = model(IMAGES).square().mean()
        loss.backward()  # the context is over
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        assert all(g is not None for g in gradients[-1])
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_images_of_one_batch_may_have_adapters_of_their_own_and_tasks() -> None:
    model, ids = vit(), torch.tensor([0, 2, 1, 2])
    with torch.no_grad(), intarsia.gating.task_ids(model, ids):
        full = model(IMAGES)
        mixed = model(IMAGES, adapter_names=["default", "__base__", "__base__", "default"])
    with torch.no_grad(), model.disable_adapter():  # pyright: ignore
        plain = model(IMAGES)
    assert_close(mixed[[0, 3]], full[[0, 3]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], full[1], atol=1e-3)
    assert torch.isfinite(plain).all()


def test_it_sits_beside_another_method_and_survives_saving(tmp_path: object) -> None:
    model = intarsia.adapt(vit(), Mosa(), name="other", targets=["mlp"])
    ids = torch.tensor([0, 2, 1, 2])
    with torch.no_grad(), intarsia.gating.task_ids(model, ids):
        want = model(IMAGES)
    model.save_pretrained(str(tmp_path))
    torch.manual_seed(0)
    host = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5
    )
    again = intarsia.load(host, str(tmp_path))
    with torch.no_grad(), intarsia.gating.task_ids(again, ids):
        assert_close(again(IMAGES), want)


def test_a_language_model_generates_by_task() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = intarsia.adapt(
        LlamaForCausalLM(config), Poly(tasks=3, rank=2, roles=("qkv", "mlp_linear")), head=None
    )
    stirred(model)
    words, ids = torch.arange(10).view(2, 5), torch.tensor([2, 0])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with intarsia.gating.task_ids(model, ids):
        both = model.generate(input_ids=words, **options)
        padded = torch.cat([torch.zeros(2, 2, dtype=torch.int64), words], 1)
        mask = torch.ones_like(padded)
        mask[:, :2] = 0
        shifted = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(shifted[:, 2:], both)
    for i, task in enumerate(ids):
        with intarsia.gating.task_ids(model, task[None]):
            assert torch.equal(model.generate(input_ids=words[i : i + 1], **options)[0], both[i])
    with intarsia.gating.task_ids(model, ids.repeat_interleave(2)):
        assert model.generate(input_ids=words, num_beams=2, **options).shape == both.shape


def test_every_layer_decides_by_itself() -> None:
    routers = [m for m in vit(noise=True).modules() if isinstance(m, TaskRouter)]
    assert len(routers) == 2 and not torch.equal(routers[0].logits, routers[1].logits)
    seeds = {m.noise.generator.initial_seed() for m in routers}
    assert len(seeds) == 2
