"""Train an adapter here; open it with PEFT and timm alone, and go on training it there.

python examples/plain_peft.py photos/
"""

import argparse

import timm
import torch
from peft import PeftModel

import intarsia

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("folder")
parser.add_argument("--out", default="adapter")
parser.add_argument("--model", default="vit_tiny_patch16_224", help="a name of timm")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--tiny", action="store_true", help="a small untrained model, 1 epoch")
asked = parser.parse_args()
settings = {"pretrained": not asked.tiny}
if asked.tiny:
    asked.model, asked.epochs = "test_vit", 1
    settings["img_size"] = 32

data = intarsia.load_data(asked.folder, seed=0)
torch.manual_seed(0)  # of the trunk, where it is not pretrained
trunk = timm.create_model(asked.model, num_classes=len(data.classes), **settings)
model = intarsia.adapt(trunk, intarsia.Lora(8))
intarsia.fit(model, data, epochs=asked.epochs, lr=2e-3)
model.save_pretrained(asked.out)

# from here on, PEFT and timm; `import intarsia` has told PEFT of its adapters
torch.manual_seed(0)
trunk = timm.create_model(asked.model, num_classes=len(data.classes), **settings)
again = PeftModel.from_pretrained(trunk, asked.out, is_trainable=True)
images = torch.randn(4, *trunk.pretrained_cfg["input_size"][:1], *trunk.patch_embed.img_size)
with torch.no_grad():
    apart = (again.eval()(images) - model.eval()(images)).abs().max()
print(f"largest difference of the outputs: {apart:.1e}")
assert apart < 1e-5

optimizer = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=1e-3)
labels = torch.arange(4) % len(data.classes)
again.train()
for step in range(3):
    loss = torch.nn.functional.cross_entropy(again(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
