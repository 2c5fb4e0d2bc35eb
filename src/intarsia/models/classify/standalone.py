"""Classify texts, or rows of numbers, with the files next to this script.

    python predict.py texts.txt       # a text in each line: its class and the probability
    python predict.py rows.csv        # of a table of numbers: its columns, with their names

    from predict import Classifier
    classifier = Classifier()                        # of the script's own folder
    classifier.probabilities(["Who was first?"])     # (texts, classes)
    classifier.predict(["Who was first?"])           # names of classes

It needs numpy; for features of a language model torch and transformers as well.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

SETTINGS, TENSORS = "classifier.json", "classifier.safetensors"
WORD = re.compile(r"(?u)\b\w\w+\b")
BATCH = 16  # texts in a forward


class Enough(Exception):
    """The deepest hidden states that are needed are there."""


class Classifier:
    """A mean of probabilities: sum_k w_k softmax(x_k W_k' + b_k) of members with features x_k."""

    def __init__(self, folder=None):
        """Read the files of a folder, None = the script's own."""
        self.folder = Path(folder or Path(__file__).parent)
        settings = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        self.classes, self.members = settings["classes"], settings["members"]
        self.tensors = read_tensors(self.folder / TENSORS)

    def probabilities(self, rows):
        """Return the probability of each class, (n, classes), of n texts or of (n, d) numbers."""
        shares = np.zeros((len(rows), len(self.classes)))
        for i, member in enumerate(self.members):
            logits = self._logits(i, member["feature"], rows)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            shares += member["share"] * weights / weights.sum(1, keepdims=True)
        return shares

    def predict(self, rows):
        """Return the likeliest class of each row."""
        return [self.classes[i] for i in self.probabilities(rows).argmax(1)]

    def _logits(self, number, feature, rows):
        """Return x W' + b of one member, (n, classes)."""
        weight, bias = (self.tensors[f"{number}.{name}"] for name in ("weight", "bias"))
        if feature["kind"] == "tfidf":
            idfs = [self.tensors[f"{number}.idf.{i}"] for i in range(len(feature["parts"]))]
            return tfidf_logits(rows, feature["parts"], idfs, weight) + bias
        if feature["kind"] == "hidden":
            rows = self._hidden(feature, rows)
        return np.asarray(rows, dtype=np.float64) @ weight.T + bias

    def _hidden(self, feature, rows):
        """Return the mean hidden states of texts by the model in the folder."""
        from transformers import AutoModel, AutoTokenizer

        # a path, so that nothing is asked of the Hub
        place = self.folder / feature["folder"]
        options = {"trust_remote_code": False, "local_files_only": True}
        model = AutoModel.from_pretrained(place, use_safetensors=True, **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        layer = feature["layer"]
        return hidden_means(model, tokenizer, rows, (layer,), feature["tokens"])[layer]


def read_tensors(path):
    """Read a safetensors file: name -> array."""
    raw = Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, kinds = json.loads(raw[8 : 8 + size]), {"F32": np.float32, "F64": np.float64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            array = np.frombuffer(raw[start:end], kinds[entry["dtype"]])
            tensors[name] = array.reshape(entry["shape"]).astype(np.float64)
    return tensors


def tfidf_logits(texts, parts, idfs, weight):
    """Return x W' for TF-IDF rows x: each part has (1 + ln count) idf, of length 1 / sqrt(parts).

    parts: of each its analyzer ("word" or "char_wb"), its shortest and longest n-gram, and its
    terms. idfs: of each part, (terms,). weight: W, (classes, all terms).
    """
    places = [{term: i for i, term in enumerate(part["terms"])} for part in parts]
    logits = np.zeros((len(texts), len(weight)))
    for row, text in enumerate(texts):
        first = 0
        for part, place, idf in zip(parts, places, idfs, strict=True):
            counts = Counter(ngrams(text.lower(), part["analyzer"], part["low"], part["high"]))
            known = {place[term]: n for term, n in counts.items() if term in place}
            if known:
                numbers = np.fromiter(known, dtype=np.int64)
                values = (1 + np.log(np.fromiter(known.values(), dtype=float))) * idf[numbers]
                values /= np.linalg.norm(values) * len(parts) ** 0.5
                logits[row] += weight[:, first + numbers] @ values
            first += len(idf)
    return logits


def ngrams(text, analyzer, low, high):
    """Yield the n-grams of a text in small letters, as scikit-learn's analyzers do."""
    if analyzer == "word":
        words = WORD.findall(text)
        for n in range(low, high + 1):
            for i in range(len(words) - n + 1):
                yield " ".join(words[i : i + n])
        return
    # of characters inside words, with a space at both ends
    for word in text.split():
        padded = f" {word} "
        for n in range(low, high + 1):
            last = max(0, len(padded) - n)
            for i in range(last + 1):
                yield padded[i : i + n]
            if last == 0:  # a short word counts once
                break


def blocks_of(model):
    """Return the list of a model's blocks, which can be cut."""
    from torch.nn import ModuleList

    lists = (m for m in model.modules() if isinstance(m, ModuleList))
    return next(m for m in lists if len(m) == model.config.num_hidden_layers)


def hidden_means(model, tokenizer, texts, layers, tokens):
    """Return layer -> mean over the tokens of a text of its hidden states, (texts, width).

    model: of transformers, without its head; blocks above the deepest layer are not computed.
    layers: numbers of blocks after which states are taken; 0 = in front of the first.
    tokens: the most of a text that is read.
    """
    import torch

    blocks, states, hooks = blocks_of(model), {}, []

    def take(layer):
        def hook(_block, _inputs, output):
            states[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise Enough

        return hook

    def enter(_block, inputs, keywords):
        states[0] = inputs[0] if inputs else keywords["hidden_states"]
        if max(layers) == 0:
            raise Enough

    hooks.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
    hooks += [blocks[n - 1].register_forward_hook(take(n)) for n in layers if n > 0]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    options = {"padding": True, "truncation": True, "max_length": tokens, "return_tensors": "pt"}
    means = {n: np.zeros((len(texts), model.config.hidden_size), np.float32) for n in layers}
    # texts of like length share a batch, which is padded to its longest
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    try:
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer([texts[i] for i in rows], **options).to(model.device)
            try:
                with torch.inference_mode():
                    model(**batch)
            except Enough:  # the deepest layer is there
                pass
            mask = batch["attention_mask"][:, :, None]
            for n in layers:
                mean = (states[n].float() * mask).sum(1) / mask.sum(1).clamp_min(1)
                means[n][rows] = mean.cpu().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return means


def rows_of(path, names):
    """Return the texts of a file, one in each line; or, with names, the numbers of its columns."""
    if not names:
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    with open(path, encoding="utf-8-sig", newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def main(paths):
    """Print path, row, class and probability of each row of some files."""
    classifier = Classifier()
    names = classifier.members[0]["feature"].get("columns", ())
    for path in paths:
        shares = classifier.probabilities(rows_of(path, names))
        for number, row in enumerate(shares, 1):
            best = int(row.argmax())
            print(f"{path}\t{number}\t{classifier.classes[best]}\t{row[best]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
