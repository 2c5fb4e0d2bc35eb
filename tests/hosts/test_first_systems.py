"""What users of the first systems do, from a checkpoint to what they deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import intarsia
from intarsia import Lora, TopK
from intarsia.adapters import Mos
from intarsia.core.errors import CheckpointError, ConfigError, TargetError
from intarsia.gating import learned_routers
from intarsia.hosts.anatomy.own_weights import own_parameters
from intarsia.methods import MixLora
from intarsia.mixtures import HeavyBall, Mixture
from intarsia.routers import Comet, Recurrent
from intarsia.sparse import LtSft, SparseDelta

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IDS = torch.randint(1, 64, (8, 6), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 16,
}  # fmt: skip
SHORT = {"epochs": 1, "batch_size": 4, "lr": 1e-2}


class Texts(torch.utils.data.Dataset[Any]):
    """Rows of tokens; labels: the tokens themselves, or a class for each row."""

    def __init__(self, classes: int = 0, shift: int = 0) -> None:
        self.ids = (IDS + shift) % 64
        self.labels = torch.arange(len(IDS)) % classes if classes else self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def llama(**settings: Any) -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES | settings)).eval()


def bert(kind: str) -> Any:
    """A tiny BERT with a head; the trunk has the same weights with every head."""
    torch.manual_seed(0)
    trunk = hf.BertModel(hf.BertConfig(**SIZES), add_pooling_layer=False)
    model = getattr(hf, kind)(hf.BertConfig(**SIZES, num_labels=3))
    model.bert.load_state_dict(trunk.state_dict(), strict=False)
    return model.eval()


def said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def sparse(name: str) -> Any:
    """A tiny sparse model of transformers whose weights are all different."""
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    experts["num_key_value_heads"] = 2
    model = getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**SIZES | experts))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_lt_sft_of_a_bert_trains_a_task_on_its_source_and_serves_it_in_another_language(
    tmp_path: Path,
) -> None:
    """The paper's order: languages by masked LM, the task at theta_0 + phi_S, then the target."""
    languages: list[SparseDelta] = []
    for shift in (0, 20):
        method, rows = LtSft(0.05, head="frozen"), Texts(shift=shift)
        languages.append(
            intarsia.fit_in_phases(bert("BertForMaskedLM"), method, rows, **SHORT).found
        )
    source, target = languages
    model = bert("BertForSequenceClassification")
    source.apply(model)
    task = intarsia.fit_in_phases(model, LtSft(0.05), Texts(3), **SHORT).found
    assert {"classifier.weight", "classifier.bias"} == set(task.heads)
    (task.rebased(source) + target).save(tmp_path / "served.safetensors")
    served = bert("BertForSequenceClassification")
    SparseDelta.load(tmp_path / "served.safetensors").apply(served)
    want = bert("BertForSequenceClassification")
    target.apply(want)
    task.apply(want, check=False)
    assert_close(said(served), said(want), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(said(served), said(model))


def test_a_delta_that_chose_behind_the_trunk_is_cut_to_it() -> None:
    model = bert("BertForMaskedLM")
    phi = intarsia.fit_in_phases(model, LtSft(0.05, support="random"), Texts(), **SHORT).found
    classifier = bert("BertForSequenceClassification")
    with refused(CheckpointError, what="delta of 'cls.predictions.bias'"):
        phi.apply(classifier)
    trunk = phi.only("bert.*")
    trunk.apply(classifier)
    learned, mine = own_parameters(model), own_parameters(classifier)
    for n in trunk.entries:
        assert_close(mine[n], learned[n], rtol=0, atol=1e-6)
    assert phi.only("*").entries.keys() == phi.entries.keys()
    assert len(trunk) + len(phi.only("cls.*")) == len(phi)
    with refused(ConfigError, what="only 'roberta.*'"):
        phi.only("roberta.*")


def test_lt_sft_of_a_llama_is_a_file_beside_the_checkpoint(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    run = intarsia.fit_in_phases(model, LtSft(count=200, head="frozen"), Texts(), **SHORT)
    run.found.save(tmp_path / "task.safetensors")
    again, before = llama(tie_word_embeddings=True), said(llama(tie_word_embeddings=True))
    task = SparseDelta.load(tmp_path / "task.safetensors")
    assert 0 < len(task) <= 200
    with task.applied(again):
        assert_close(said(again), said(model), rtol=1e-4, atol=1e-5)
    assert torch.equal(said(again), before)


def test_mixlora_learns_in_transformers_trainer_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = intarsia.adapt(llama(), MixLora(TopK(4, 2, balance=0.1), Lora(2)), head=None)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = said(model)
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, max_steps=3,
        learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        label_names=["labels"], logging_strategy="no",
    )  # fmt: skip
    loss = intarsia.train.trainer_loss(model)
    hf.Trainer(model, arguments, train_dataset=Texts(), compute_loss_func=loss).train()
    for n, p in model.named_parameters():
        assert n not in frozen or torch.equal(p, frozen[n])
    want = said(model)
    assert not torch.allclose(want, before)
    model.save_pretrained(tmp_path / "experts")
    again = intarsia.load(llama(), tmp_path / "experts")
    assert_close(said(again), want)
    got, mine = learned_routers(again), learned_routers(model)
    assert len(got) == 2
    assert all(torch.equal(got[n].get_parameter("weight"), r.get_parameter("weight"))
               for n, r in mine.items())  # fmt: skip


def test_s2ft_of_a_llama_checkpoint_folds_and_plain_transformers_opens_it(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = intarsia.adapt(base, intarsia.methods.S2ft(down=0.25, output=0.25), head=None)
    intarsia.fit(model, Texts(), **SHORT)
    want = said(model)
    stock = intarsia.fold(model, inputs={"input_ids": IDS}, report=lambda _: None)
    stock.save_pretrained(tmp_path / "tuned")  # pyright: ignore
    opened = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert type(opened) is hf.LlamaForCausalLM
    assert_close(said(opened), want, rtol=1e-4, atol=1e-5)
    old = llama().state_dict()
    changed = {n for n, t in opened.state_dict().items() if not torch.equal(t, old[n])}
    assert changed and all(n.endswith(("down_proj.weight", "o_proj.weight")) for n in changed)
    assert opened.state_dict().keys() == old.keys()


def test_mos_merges_into_the_checkpoint() -> None:
    model = intarsia.adapt(llama(), Mos(3, 2, 4, 1), head=None)
    intarsia.fit(model, Texts(), **SHORT)
    want = said(model)
    merged = model.merge_and_unload()
    assert type(merged) is hf.LlamaForCausalLM
    assert_close(said(merged), want, rtol=1e-4, atol=1e-5)
    assert merged.state_dict().keys() == llama().state_dict().keys()


@pytest.mark.parametrize("name", ["Mixtral", "Olmoe"])
def test_a_router_is_swapped_into_a_sparse_model_learns_and_comes_back(
    name: str, tmp_path: Path
) -> None:
    want = said(sparse(name))
    assert_close(said(intarsia.upcycle(sparse(name))), want, rtol=1e-4, atol=1e-4)
    model = intarsia.upcycle(sparse(name), Comet(experts=4, active=2))
    experts = {n: p for n, p in model.named_parameters() if ".experts." in n}
    old = dict(sparse(name).named_parameters())
    assert experts and all(torch.equal(p, old[n]) for n, p in experts.items())
    intarsia.fit(model, Texts(), **SHORT)
    intarsia.save(model, tmp_path / "swapped")
    again = intarsia.load(sparse(name), tmp_path / "swapped")
    assert_close(said(again), said(model))
    assert not torch.allclose(said(again), want)


def vit() -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


PICTURES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seen(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(PICTURES)


def test_rmoe_in_a_vit_learns_through_the_layers_and_comes_back(tmp_path: Path) -> None:
    model = intarsia.upcycle(vit(), Recurrent(experts=4, active=2, hidden=8), how="diversified")
    first: Any = model.blocks[0].mlp
    assert isinstance(first, Mixture)
    # the last layer's choice depends on what the first layer's router kept
    model.train()(PICTURES).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in first.router.parameters())
    model.zero_grad()
    intarsia.fit(model, TensorDataset(PICTURES, torch.arange(8) % 5), **SHORT)
    intarsia.save(model, tmp_path / "rmoe")
    again = intarsia.load(vit(), tmp_path / "rmoe")
    assert_close(seen(again), seen(model))


def test_a_mixture_with_momentum_is_saved_and_comes_back(tmp_path: Path) -> None:
    paths = [f"blocks.{i}.mlp" for i in range(3)]
    model = intarsia.upcycle(vit(), TopK(4, 2), how="diversified", fraction=0.5)
    plain = seen(model)
    intarsia.methods.add_momentum(model, HeavyBall(0.7), paths)
    want = seen(model)
    assert not torch.allclose(want, plain)
    intarsia.experts.save_mixture(model, tmp_path / "momentum")
    assert_close(seen(intarsia.experts.load_mixture(vit(), tmp_path / "momentum")), want)
    early = intarsia.methods.add_momentum(vit(), HeavyBall(0.7), paths)
    with refused(TargetError, what="model", got="one with momentum around its MLPs"):
        intarsia.upcycle(early, TopK(4, 2))
