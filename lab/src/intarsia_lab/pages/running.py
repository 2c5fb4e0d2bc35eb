"""The Python on a method's page: it runs as it stands, with toys for your model and your data.

A program is written once for the methods that are used alike: all of a kind, or of a family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from intarsia.catalog import example

# toys, which stand for a pretrained model or for your data
VIT = 'model = timm.create_model("test_vit", img_size=32, num_classes=4)    # yours: pretrained'
CNN = 'model = timm.create_model("test_efficientnet", num_classes=4)    # yours: pretrained'
SIZES = """    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4)"""
LLAMA = f"config = LlamaConfig(\n{SIZES}\nmodel = LlamaForCausalLM(config)    # yours: pretrained"
MIXTRAL = LLAMA.replace("Llama", "Mixtral")
PICTURES = "data = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4)"
TEXTS = 'rows = [{"input_ids": ids} for ids in torch.randint(64, (16, 32))]    # of a tokenizer'
# 32 texts of 20 tokens, two layers, eight experts
TRACE = """row = torch.arange(640)
trace = Trace(torch.randint(8, (640, 2, 2)), 8, row // 20, row % 20)    # or intarsia.trace"""
TAKEN = 'taken = [("ann", "tea"), ("ann", "milk"), ("bob", "tea"), ("bob", "milk"), ("eve", "tea")]'
# each user takes eight of thirteen items, none twice, so that one can be held out
EVENTS = """events = [(f"user {n % 9}", f"item {n % 13}", n) for n in range(72)]
data = as_interactions(events)    # or intarsia.recommend.load_interactions("folder")
train, test = data.leave_last()"""
ITEMS = "items = np.random.default_rng(0).random((20, 64)) < 0.2    # binary"

# calls that several programs share
FIT = "intarsia.fit(model, data, epochs=1, batch_size=8)"
SEE = "print(model(torch.randn(2, 3, 32, 32)).shape)"
CHANGED = f"{VIT}\nmodel = intarsia.apply(model, $method)\n{PICTURES}\n{FIT}"
PHASED = (
    f"{VIT}\n{PICTURES}\n"
    "method = $method\n"
    "found = intarsia.fit_in_phases(model, method, data, epochs=1, batch_size=8).found"
)
RECOMMENDED = (
    f"{EVENTS}\ndone = intarsia.recommend.fit_recommender(\n"
    "    $method, data, parts=(train, test, test), epochs=1)\n"
    'print(done.model.recommend("user 1", k=2))'
)
TAKES = f'{TAKEN}\nmodel = $method.fit(taken)\nprint(model.recommend("eve"))'
SEEING = f"{LLAMA}\nsenses = $method\nmodel = intarsia.apply(model, senses)    # its decoder stays"
FILLED = (
    f"{VIT}\nlayer = $method\n"
    f"model = intarsia.upcycle(model, layer.router, capacity=layer.capacity)\n{SEE}"
)

# the widest group: a name goes before a family, a family before a kind
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "adapter": f"{VIT}\nmodel = intarsia.adapt(model, $method)\n{PICTURES}\n{FIT}",
        "baseline": CHANGED,
        "cache": f"""{TRACE}
steps = demand(trace, streams=4)    # the experts of each step
print(replay(steps, $method.build(2, 8), slots=6).rate)    # hits""",
        "change": CHANGED,
        "parallel": f"""{TRACE}
links = Topology.two_level(nodes=2, each=2, intra=(300e9, 2e-6), inter=(25e9, 10e-6))
size, past = ExpertSize(64, 256), [trace.load()]
plan = $method.plan(trace, size, links, past=past)
print(intarsia.simulate(plan, links).seconds)    # intarsia.fit(..., parallel=...) does it""",
        "placement": f"""{TRACE}
placed = intarsia.place(trace, 4, $method)    # 4 devices
print(quality(trace, placed))""",
        "recipe": CHANGED,
        "router": f"""{VIT}
model = intarsia.upcycle(model, $method)    # its MLPs become mixtures
{PICTURES}
{FIT}""",
        "schedule": f"{VIT}\n{PICTURES}\n{FIT[:-1]}, schedule=$method)",
        "training": PHASED,
    }
)
# families with a call of their own in their kind
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "pruning": f"""{LLAMA}
{TEXTS}
model = intarsia.sparsify(model, $method, rows)
print(intarsia.sparse.sparsify_report(model))""",
        "recommenders": RECOMMENDED,
        "schedules": f"""{VIT}
model = intarsia.adapt(model, intarsia.Mosa())
{PICTURES}
{FIT[:-1]}, schedule=$method)""",
        "sparse coding": """x = np.random.default_rng(0).exponential(size=(200, 16))    # samples
model = $method.fit(x)
print(model.transform(x).shape)    # the posterior means of the codes""",
    }
)
# methods that nothing else is called like
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "add_momentum": CHANGED,
        "compress": f"""{LLAMA}
model = intarsia.apply(model, $method)    # for answers
print(model(torch.randint(64, (1, 8))).logits.shape)""",
        "dass": PHASED,
        "deepspeed_moe": f"""{VIT}
layer = $method
model = intarsia.upcycle(model, layer.router, experts=layer.experts, residual=layer.mix)
{SEE}""",
        "dsl": f"""{EVENTS}
model, parts = intarsia.recommend.LightGcn(width=8), (train, test, test)
intarsia.recommend.fit_recommender(
    model, data, parts=parts, epochs=3, schedule=$method)""",
        "ease": TAKES,
        "fast_convnets": f"""{CNN}
picture = torch.randn(1, 3, 32, 32)
fast = intarsia.compress(model.eval(), $method, picture, force=True)
print(fast(picture).shape)""",
        "fixed_mask": f"""{VIT}
model = intarsia.apply(model, intarsia.sparse.Magnitude(density=0.5))
{PICTURES}
{FIT[:-1]}, schedule=$method)""",
        "gaussian": """weight = torch.randn(64, 64)
stored = $method.encode(weight)    # codes of one bit, and two moments
print($method.decode(stored, weight.shape).sub(weight).square().mean())""",
        "gaussian_moe": """x = np.random.default_rng(0).uniform(-2, 2, (400, 1))
y = np.where(x[:, 0] > 0, 1.5, -1.0) * x[:, 0]
model = $method.fit(x, y)
print(model.coef_, model.gates([[-1.0], [1.0]]))    # slopes, and shares of the experts""",
        "gqsa": f"""{LLAMA}
{TEXTS}
model = intarsia.compress(model, $method, rows, force=True)
print(model(torch.randint(64, (1, 8))).logits.shape)""",
        "head_spans": f"""{LLAMA}
model = intarsia.apply(model, $method)
print(model(torch.randint(64, (1, 48))).logits.shape)""",
        "hash": f"""{LLAMA}
model = intarsia.upcycle(model, $method)    # its MLPs become mixtures
print(model(torch.randint(64, (1, 8))).logits.shape)""",
        "inference_free": "",  # of a language model with its words, no toy
        "itemknn": TAKES,
        "llava_mole": f"""{LLAMA}
model = intarsia.adapt(model, $method)
print(model(torch.randint(64, (1, 8))).logits.shape)""",
        "mac": f"""{ITEMS}
memory = $method
for item in items:
    memory.partial_fit(item)    # once each
print(memory.familiarity(items))    # 1: known""",
        "m2trec": "",  # of items with fields
        "onerec": "",  # of sessions that were liked
        "merge_mixtures": f"""{VIT}
one, two = (intarsia.upcycle(copy.deepcopy(model), intarsia.TopK(4), seed=s) for s in (0, 1))
model = intarsia.apply(one, $method)    # 4 + 4 experts in each layer
{SEE}""",
        "moe_x": f"""{VIT}
model = intarsia.upcycle(model, $method, act="relu", how="diversified")
{PICTURES}
{FIT}""",
        "moa": f"""{LLAMA}
texts = torch.randint(64, (4, 768))    # of a tokenizer
spans = intarsia.spans.choose_spans(model, $method, texts)
intarsia.spans.attach_spans(model, spans, length=768)""",
        "modalities": SEEING,
        "prune_experts": f"""{VIT}
model = intarsia.upcycle(model, intarsia.TopK(experts=4))
batches = [torch.randn(8, 3, 32, 32)]    # whose tokens choose
model = intarsia.apply(model, $method, batches)
{SEE}""",
        "qmoe": f"""{MIXTRAL}
{TEXTS}
model = intarsia.compress(model, $method, rows)
print(model(torch.randint(64, (1, 8))).logits.shape)""",
        "random_search": f"""{VIT}
batch = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
model = intarsia.apply(model, $method, [batch])
{SEE}""",
        "read_me": f"""{LLAMA}
texts = {{"code": [{{"input_ids": torch.randint(32, (8, 24))}}]}}
texts["prose"] = [{{"input_ids": 32 + torch.randint(32, (8, 24))}}]
intarsia.privacy.extract(model, texts, $method)
print(model(**texts["code"][0]).logits.shape)""",
        "recombiner": """china, flower = (image[::6, ::6] for image in load_sample_images().images)
small = $method
codec = intarsia.codec.Recombiner.train([china], 0.5, small, crops=32, steps=100)
data = codec.encode(flower[:32, :32], steps=50)
print(len(data), codec.decode(data).shape)""",
        "residual": """layers = [Residual(torch.nn.Linear(8, 8), $method) for _ in range(3)]
join(blocks := torch.nn.Sequential(*layers))
start(blocks)    # before every forward
print(blocks(torch.randn(2, 8)).shape)""",
        "seuf": f"""{MIXTRAL}
forget, keep = torch.randint(32, (16, 24)), 32 + torch.randint(32, (16, 24))
table = intarsia.experts.attribute_experts(model, [forget], [keep])
place = table.best("lift")    # layer and expert
intarsia.privacy.unlearn(model, $method, forget, keep, at=place)""",
        "slime": SEEING,
        "sparse_bytenn": CHANGED.replace(VIT, CNN),
        "sparse_ift": CHANGED.replace(VIT, CNN),
        "sparsey_net": """pictures = np.random.default_rng(0).random((20, 784)) < 0.1    # 28 x 28
memory = $method.fit(pictures)
print(memory.code(pictures).shape)    # the winners of the last level""",
        "squarehead": f"""{VIT}
small = intarsia.apply(copy.deepcopy(model), intarsia.sparse.Magnitude(density=0.3))
{PICTURES}
zeros = intarsia.schedules.FixedMask()
like = $method
intarsia.fit(small, data, epochs=1, batch_size=8, schedule=zeros, objective=like)""",
        "student_of": f"""{VIT}
small = intarsia.apply(model, $method)    # a copy
print(small(torch.randn(2, 3, 32, 32)).shape)""",
        "task": """router = $method.build(8)    # intarsia.methods.Poly mixes LoRAs by it
print(router(torch.randn(10, 8)).dense().shape)""",
        "uni_moe": f"""{LLAMA}
senses = intarsia.senses.Modalities(image="pixels", audio="log-mel")
model = intarsia.adapt(intarsia.apply(model, senses), $method, head=None)""",
        "union_of_experts": CHANGED,
        "upcycle": CHANGED,
        "zcode_m3": FILLED,
    }
)
FEW = "n_components=4, n_iter=10"
# settings that a toy needs, which is smaller than the defaults allow
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("bsc", "dsc", "gsc", "mca", "mmca", "mog", "mop", "tsc"), FEW),
        "deepspeed_moe": "experts=(4,) * 6",
        "dsl": "every=1",
        "gaussian_moe": 'gate="linear", temperature="fixed"',
        "head_spans": "sink=4, length=48",
        "merge_mixtures": "two",
        "prune_experts": "keep=2",
        "moa": "lengths=(512,), check=768",
        "recombiner": "patch=(16, 16), width=8, depth=2, positions=4, kl_bits=8",
        "slime": "tiles=2",
        "squarehead": "model",
        "student_of": "layers=(0, 1, 3)",
    }
)
# in the order of a program's head
IMPORTS: Mapping[str, str] = MappingProxyType(
    {  # a line, and what in a program needs it
        "import copy": r"\bcopy\.",
        "import numpy as np": r"\bnp\.",
        "import timm": r"\btimm\.",
        "import torch": r"\btorch\.",
        "from sklearn.datasets import load_sample_images": "load_sample_images",
        "from torch.utils.data import TensorDataset": "TensorDataset",
        "from transformers import LlamaConfig, LlamaForCausalLM": "LlamaConfig",
        "from transformers import MixtralConfig, MixtralForCausalLM": "MixtralConfig",
        "import intarsia": r"\bintarsia\.",
        "from intarsia.data.interactions import as_interactions": "as_interactions",
        "from intarsia.gating import join, start": r"\bjoin\(",
        "from intarsia.mixtures import Residual": r"\bResidual\(",
    }
)
# names that one line imports together
PLACEMENT = ("ExpertSize", "Topology", "Trace", "quality", "replay")


SESSIONS = ("m2trec", "onerec")  # of items taken just now; the others rank for a user


def command(card: Mapping[str, Any]) -> str:
    """Return a command that runs a method, "" for one that is for Python only.

    card: its description from the index.
    """
    name = card["name"]
    if card["kind"] in ("adapter", "baseline"):
        return example(card)[0]
    if card["family"] == "recommenders":
        task = "sessions" if name in SESSIONS else "ranking"
        return f"intarsia fit ml-100k --task {task} --method {name}"
    if card["family"] == "pruning":
        return f"intarsia sparsify smollm2 --method {name} --density 0.5 --out pruned"
    if card["family"] == "retrieval":
        return "intarsia fit docs.jsonl --task sparse-retrieval --teachers minilm,bm25 --out enc"
    return ""


def program(card: Mapping[str, Any]) -> str:
    """Return lines of Python that run a method as they stand, "" for one that a command runs.

    card: its description from the index.
    """
    name = card["name"]
    # a training in phases is no call of `fit`, whatever its kind
    of_kind = PHASED if card.get("phased") else KINDS.get(card["kind"], "")
    text = NAMES.get(name, FAMILIES.get(card["family"], of_kind))
    text = text.replace("$method", f"{card['python']}({SETTINGS.get(name, '')})")
    # a line is imported only where the program names it
    lines = [line for line, used in IMPORTS.items() if re.search(used, text)]
    if names := [name for name in PLACEMENT if re.search(rf"\b{name}\b", text)]:
        lines.append(f"from intarsia.placement import {', '.join(names)}")
    if "demand(" in text:
        lines.append("from intarsia.placement.describe import demand")
    # three groups with an empty line between, as a sorted file has them
    ours = [line for line in lines if "intarsia" in line]
    foreign = [line for line in lines if line not in ours]
    groups = ("\n".join(group) for group in (foreign, ours, [text]) if group)
    return "\n\n".join(groups) if text else ""
