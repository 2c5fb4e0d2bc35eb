"""Open an adapter of intarsia with PEFT and timm alone, and go on training it there.

intarsia fit photos --method lora --model vit_tiny_patch16_224 --out runs/photos
python examples/plain_peft.py runs/photos
"""

import argparse
import json
import sys
from pathlib import Path

import timm
import torch
from peft import PeftModel

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("run", type=Path, help="a run of `intarsia fit --method lora`")
parser.add_argument("--out", default="adapter")
parser.add_argument("--tiny", action="store_true", help="the run is of an untrained model")
arguments = parser.parse_args()

# the run's record names the model of timm, the size of its pictures and the classes
record = json.loads((arguments.run / "run.json").read_text())["record"]
experiment, classes = record["experiment"], record["data"]["classes"]
size = {} if experiment["size"] is None else {"img_size": experiment["size"]}
torch.manual_seed(experiment["seed"])  # of the trunk, where it is not pretrained
trunk = timm.create_model(
    experiment["model"], pretrained=not arguments.tiny, num_classes=len(classes), **size
)
model = PeftModel.from_pretrained(trunk, str(arguments.run / "adapter"), is_trainable=True)
model.print_trainable_parameters()

# a loop of your own: these are random pictures, in the place of yours
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
images = torch.randn(4, 3, *trunk.patch_embed.img_size)
labels = torch.arange(4) % len(classes)
model.train()
for step in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
model.save_pretrained(arguments.out)
assert "intarsia" not in sys.modules
