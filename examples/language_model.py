"""Teach SmolLM2 prompts with responses by LoRA; perplexity before and after, and an answer.

python examples/language_model.py answers.jsonl
"""

import argparse

import torch

import intarsia

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("file", help='lines of {"prompt": ..., "response": ...}, or a .txt')
parser.add_argument("--out", default="adapter")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--length", type=int, default=128, help="tokens of a row")
parser.add_argument("--model", help="a folder of save_pretrained in place of SmolLM2")
parser.add_argument("--tiny", action="store_true", help="1 epoch of rows of 32 tokens")
asked = parser.parse_args()
if asked.tiny:
    asked.epochs, asked.length = 1, 32

model, tokenizer = intarsia.language_model(asked.model or "smollm2")
data = intarsia.load_texts(asked.file, tokenizer, length=asked.length, seed=0)
before = intarsia.evaluate(model, data.test)

model = intarsia.adapt(model, intarsia.Lora(8), head=None)
run = intarsia.fit(model, data, epochs=asked.epochs, batch_size=8, lr=1e-3)
print(f"perplexity of the test rows: {before.perplexity:.2f} -> {run.test.perplexity:.2f}")
print(f"whole answers right: {before.exact_match:.1%} -> {run.test.exact_match:.1%}")

row = data.test[0]
prompt = row["input_ids"][row["labels"] == -100][None]  # what no answer is asked of
with torch.no_grad():
    said = model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)[0]
print(f"{tokenizer.decode(prompt[0])!r} -> {tokenizer.decode(said[prompt.shape[1] :])!r}")
model.save_pretrained(asked.out)
print(f"PEFT adapter: {asked.out}")
