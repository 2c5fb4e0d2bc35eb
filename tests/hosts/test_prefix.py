"""The split trunk is the trunk."""

import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import intarsia
from intarsia import Bottleneck, Lora, adapt
from intarsia.core.errors import ConfigError, TargetError
from intarsia.core.registry import card, index, keys, settings_from_dict
from intarsia.hosts.anatomy.prefix import first_trained_block, reading_tokens, run_prefix, split_at
from intarsia.hosts.attach.select import BATCH_NORM
from intarsia.train.precision import learned_state, training_mode

from ..refusals import refused

SMALL = {
    "peft-oft": {"oft_block_size": 8},
    "peft-miss": {"r": 8},
    "peft-fourierft": {"n_frequency": 20},
}


def build(name, model, settings=None):
    """The model with a baseline, by the key of its card."""
    return intarsia.apply(model, settings_from_dict(card(name), settings or {}))


def tiny():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_small_patch14_dinov2", img_size=28, embed_dim=24, num_heads=2, depth=4, num_classes=3
    ).eval()


def convolutional():
    """An EfficientNet whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).train()
    with torch.no_grad():
        for _ in range(3):
            model(1 + torch.randn(8, 3, 32, 32))
    return model.eval()


@pytest.mark.parametrize("build_model", [tiny, convolutional])
@pytest.mark.parametrize("block", [0, 2, 3])
def test_tail_of_prefix_is_the_model(build_model, block):
    model = build_model()
    x = torch.randn(3, 3, 28, 28)
    prefix, tail = split_at(model, block)
    torch.testing.assert_close(tail(prefix(x)), model(x))


@pytest.mark.parametrize("name", ["pfeiffer", "lora", "last-k", "norms", "peft-lora"])
def test_an_efficientnet_trains_on_maps_as_on_pictures(name):
    """Steps included: frozen batch norms keep their statistics, trained ones change alike."""

    def built():
        if name == "last-k":
            return build(name, convolutional(), {"blocks": 2})
        if name in keys("baseline"):
            return build(name, convolutional(), {"last_blocks": 2})
        method = Lora(2) if name == "lora" else Bottleneck(4, placement="pfeiffer")
        return adapt(convolutional(), method, layers=[-2, -1])

    def trained(model, inputs):
        learns = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learns, lr=0.1)
        for _ in range(3):
            training_mode(model)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), y).backward()
            optimizer.step()
        return learned_state(model)

    x, y = torch.randn(3, 3, 28, 28), torch.tensor([0, 1, 2])
    want = trained(built(), x)
    model = built()
    before = {n: p.clone() for n, p in learned_state(model).items()}
    block = first_trained_block(model)
    assert block == len(split_at(convolutional(), 0)[1].blocks) - 2
    with reading_tokens(model, block) as prefix:
        maps = run_prefix(prefix, TensorDataset(x, y), dtype=torch.float32).tensors[0]
        learned = trained(model, maps)
    torch.testing.assert_close(learned, want)
    assert any(not torch.equal(learned[n], before[n]) for n in learned)


def test_adapting_the_tail_is_adapting_the_last_layers():
    full, model = tiny(), tiny()
    x = torch.randn(3, 3, 28, 28)
    y = torch.tensor([0, 1, 2])
    prefix, tail = split_at(model, 2)
    tokens = run_prefix(prefix, TensorDataset(x, y), dtype=torch.float32).tensors[0]
    a = adapt(full, Bottleneck(4), layers=[2, 3])
    b = adapt(tail, Bottleneck(4))
    for adapted in (a, b):
        with torch.no_grad():
            for n, p in adapted.named_parameters():
                if ".up." in n:
                    g = torch.Generator().manual_seed(p.numel())
                    p.copy_(torch.randn(p.shape, generator=g))
    down = [{n: p for n, p in m.named_parameters() if ".down." in n} for m in (a, b)]
    for p, q in zip(*(d.values() for d in down), strict=True):
        q.data.copy_(p.data)
    torch.testing.assert_close(a(x), b(tokens))


def test_what_cannot_be_split():
    with refused(TargetError, what="model to split", got="Linear"):
        split_at(torch.nn.Linear(2, 2), 0)
    with refused(ConfigError, what="block", got=4):
        split_at(tiny(), 4)
    with refused(ConfigError, what="dropout before the classifier", got=0.2):
        split_at(timm.create_model("test_efficientnet", drop_rate=0.2), 1)


def test_a_model_that_reads_tokens_is_the_model():
    model = adapt(tiny(), Bottleneck(4), layers=[2, 3]).eval()
    x, y = torch.randn(3, 3, 28, 28), torch.tensor([0, 1, 2])
    names = list(model.state_dict())
    want = model(x)
    block = first_trained_block(model)
    with reading_tokens(model, block) as prefix:
        tokens = run_prefix(prefix, TensorDataset(x, y), dtype=torch.float32).tensors[0]
        torch.testing.assert_close(model(tokens), want)
        assert list(model.state_dict()) == names
        model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(model(x), want)


IN_BLOCKS = [
    key
    for key in keys("baseline")
    if any(setting["name"] == "last_blocks" for setting in index()[key]["settings"])
]


@pytest.mark.parametrize("name", [*IN_BLOCKS, "last-k"])
def test_baselines_in_the_last_blocks_read_tokens(name):
    settings = {"blocks": 2} if name == "last-k" else {"last_blocks": 2}
    x, y = torch.randn(3, 3, 28, 28), torch.tensor([0, 1, 2])
    model = build(name, tiny(), SMALL.get(name, {}) | settings).eval()

    def gradients(inputs):
        model.zero_grad()
        logits = model(inputs)
        torch.nn.functional.cross_entropy(logits, y).backward()
        return logits, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    want = gradients(x)
    assert first_trained_block(model) == 2
    with reading_tokens(model, 2) as prefix:
        tokens = run_prefix(prefix, TensorDataset(x, y), dtype=torch.float32).tensors[0]
        torch.testing.assert_close(gradients(tokens), want)


def test_baselines_in_all_blocks_have_nothing_to_compute_once():
    for name in ("full", "bitfit", "norms", "vpt-shallow", "vpt-deep", "peft-lora"):
        with refused(ConfigError, what="blocks to compute once"):
            first_trained_block(build(name, tiny()))


def test_first_trained_block():
    assert first_trained_block(adapt(tiny(), Bottleneck(4), layers=[2, 3])) == 2
    probe = tiny().requires_grad_(False)
    probe.head.requires_grad_(True)
    assert first_trained_block(probe) is None
    probe.norm.requires_grad_(True)
    assert first_trained_block(probe) == 3
    for everything in (tiny(), adapt(tiny(), Bottleneck(4))):
        with refused(ConfigError, what="blocks to compute once"):
            first_trained_block(everything)
    probe.patch_embed.requires_grad_(True)
    with refused(ConfigError, what="blocks to compute once"):
        first_trained_block(probe)
    with refused(TargetError, what="model to split", got="Linear"):
        first_trained_block(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"]
)
def test_classifier_of_features_is_the_model(name):
    size = {} if "efficient" in name else {"img_size": 64}
    model = timm.create_model(name, num_classes=3, **size).eval().requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    assert first_trained_block(model) is None
    want = model(x)
    with reading_tokens(model, None) as prefix:
        features = run_prefix(prefix, TensorDataset(x, y), dtype=torch.float32).tensors[0]
        assert features.shape == (2, model.num_features)
        torch.testing.assert_close(model(features), want)
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize(
    "name, follow",
    [("full", "all"), ("last-k", "last"), ("bitfit", ""), ("norms", ""), ("linear", "")],
)
def test_batch_norms_follow_the_batch_where_their_convolutions_learn(name, follow):
    model = build(name, convolutional(), {"blocks": 1} if name == "last-k" else {})
    training_mode(model)
    training = {n for n, m in model.named_modules() if isinstance(m, BATCH_NORM) and m.training}
    norms = {n for n, m in model.named_modules() if isinstance(m, BATCH_NORM)}
    last = {n for n in norms if n.startswith("blocks.4.") or n == "bn2"}
    assert last and training == {"all": norms, "last": last, "": set()}[follow]


def test_no_classifier_and_dropout_before_it():
    with refused(TargetError, what="model to split", got="EfficientNet"):
        split_at(timm.create_model("tf_efficientnet_lite0", num_classes=0), None)
    with refused(ConfigError, what="dropout before the classifier", got=0.2):
        split_at(timm.create_model("tf_efficientnet_lite0", drop_rate=0.2), None)
