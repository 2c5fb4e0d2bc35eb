"""A tokenizer of transformers as llama.cpp reads it from a GGUF file: two kinds of byte pairs.

"gpt2": byte-level pairs, with the name of a rule of llama.cpp's that cuts text as this tokenizer
does.  "llama": SentencePiece's pairs with a score for each piece, spaces written as U+2581.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import ExportError

ELSEWHERE = "llama.cpp's own convert_hf_to_gguf.py may know this tokenizer."
SPACE = "\u2581"  # character that SentencePiece writes for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_EDGE = r"[^\r\n\p{L}\p{N}]?"
_THREE = rf"{_CASELESS}|{_EDGE}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_ONE = rf"{_CASELESS}|{_EDGE}\p{{L}}+|\p{{N}}{_REST}"
_TEKKEN = (
    rf"{_EDGE}[{_UPPER}]*[{_LOWER}]+|{_EDGE}[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's name -> how it cuts text (a pattern; None = the rule of GPT-2), digits one by one,
# and whether a word that is a token is taken as it is, without merges
RULES: Mapping[str, tuple[str | None, bool, bool]] = {
    "gpt-2": (None, False, False),
    "smollm": (None, True, False),
    "qwen2": (_ONE, False, False),
    "smaug-bpe": (_THREE, False, False),
    "llama-bpe": (_THREE, False, True),
    "tekken": (_TEKKEN, False, True),
}
PROBE = (
    "It's HE'LL don't\tI'M 'tis  x1 22 333 4444 55555  3.14,  a_b   \n\n  \r\n end.\n"
    "// path/to\n/* c */ Ünïcode naïve e\u0301 ÉCOLE 'Sure' 中文字 １２３ ٣٤ "
    "\U0001f600 \u00a0 camelCase HTTPServer x²½ --== #!?... \u200d  "
)


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary of a tokenizer in the form of a GGUF file.

    model: "gpt2" (byte-level pairs) or "llama" (SentencePiece).  pre: llama.cpp's name of the rule
    that splits text into words.  tokens, types: of each id. order: for "gpt2" the merges, as "a b";
    for "llama" a score for each token.  special: "bos", "eos", "unk", "pad" -> id.  added: True for
    each of "bos", "eos" and "space" (before the text) that the tokenizer adds. template: text that
    chats are put into; None = none.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    order: Sequence[Any]
    special: Mapping[str, int]
    added: Mapping[str, bool]
    template: Any


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Return a tokenizer's vocabulary in the form that llama.cpp reads.

    size: rows of the model's embedding; ids that the tokenizer does not use become "[PAD...]".
    Raises: ExportError for a tokenizer that is no byte-pair encoding, splits or changes text as
    none of llama.cpp's rules does, or has more tokens than the model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        got = f"{type(tokenizer).__name__}, which has no tokenizer.json"
        raise _unknown_tokenizer(got, "a fast tokenizer of transformers")
    content = json.loads(backend.to_str())
    pairs = content["model"]
    if pairs.get("type") != "BPE" or pairs.get("dropout") or pairs.get("end_of_word_suffix"):
        raise _unknown_tokenizer(f"the model {pairs.get('type')!r}", "byte pairs (BPE)")
    if not pairs["merges"]:
        raise _unknown_tokenizer("no merges", "some, which llama.cpp insists on")
    tokens, types = _tokens(tokenizer, pairs["vocab"], content["added_tokens"], size)
    names = ("bos", "eos", "unk", "pad")
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in names}
    # tokens that the tokenizer adds are at the ends of any text
    sample_ids = tokenizer("a").input_ids
    added = {
        "bos": bool(sample_ids) and sample_ids[0] == ids["bos"],
        "eos": bool(sample_ids) and sample_ids[-1] == ids["eos"],
    }
    # only SentencePiece's pairs fall back to bytes
    if pairs.get("byte_fallback"):
        model, pre, order = "llama", "default", _scores(tokens, pairs["merges"])
        added["space"] = _space_before(content)
        types = [
            _sentencepiece_type(t, n, pairs.get("unk_token"))
            for t, n in zip(tokens, types, strict=True)
        ]
    else:
        model, pre = "gpt2", _cut_rule(backend, content)
        order = [" ".join(_merge_pair(merge)) for merge in pairs["merges"]]
    special = {name: int(number) for name, number in ids.items() if number is not None}
    return Vocabulary(model, pre, tokens, types, order, special, added, tokenizer.chat_template)


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write a vocabulary and the chat template into a file; writer: a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.order)
    else:
        writer.add_token_scores(vocabulary.order)
        writer.add_add_space_prefix(vocabulary.added["space"])
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.added["bos"])
    writer.add_add_eos_token(vocabulary.added["eos"])
    template = vocabulary.template
    if isinstance(template, Mapping):  # several templates, by name
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _tokens(
    tokenizer: Any, vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int
) -> tuple[list[str], list[int]]:
    added_by_id = {entry["id"]: entry for entry in added}
    last = max([*vocab.values(), *added_by_id], default=-1)
    if last >= size:
        got, want = f"{last + 1} tokens", f"at most {size}, the rows of the model's embedding"
        fix = "Use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))."
        raise ExportError("tokenizer", got=got, want=want, fix=fix)
    # embeddings may have more rows than the tokenizer has tokens
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for text, number in vocab.items():
        tokens[number], types[number] = text, NORMAL
    for number, entry in added_by_id.items():
        tokens[number] = entry["content"]
        types[number] = CONTROL if entry["special"] else USER_DEFINED
    return tokens, types


def _cut_rule(backend: Any, content: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for the rule by which a byte-level tokenizer cuts text."""
    from tokenizers import Regex, pre_tokenizers

    normal = content["normalizer"]
    # llama.cpp normalises nothing
    if normal is not None and normal["type"] != "NFC":
        raise _unknown_tokenizer(f"the normalizer {normal['type']!r}", "none, or NFC")
    cut = backend.pre_tokenizer
    ignores = bool(content["model"].get("ignore_merges"))
    parts = None if cut is None else cut.pre_tokenize_str(PROBE)
    for name, (pattern, digits, takes_whole_words) in RULES.items():
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
        if pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
        # compared on a text with everything that such rules differ in
        like = pre_tokenizers.Sequence(steps).pre_tokenize_str(PROBE)
        if like == parts and takes_whole_words == ignores:
            return name
    got = f"{json.dumps(content['pre_tokenizer'])[:200]} with ignore_merges={ignores}"
    raise _unknown_tokenizer(got, f"text cut as by one of {', '.join(RULES)}")


def _space_before(content: Mapping[str, Any]) -> bool:
    """Return True if a SentencePiece tokenizer puts a space before the text."""
    # its only other change may be to replace spaces by U+2581, the sign SPACE here: llama.cpp
    # makes no other
    before = False
    for step in (*_steps(content["normalizer"]), *_steps(content["pre_tokenizer"])):
        kind = step["type"]
        plain = kind == "Replace" and step["pattern"] == {"String": " "}
        if plain and step["content"] == SPACE:
            continue
        if kind == "Prepend" and step["prepend"] == SPACE:
            before = True
        elif kind == "Metaspace" and step["replacement"] == SPACE and not step.get("split", True):
            before = before or step.get("prepend_scheme", "always") != "never"
        else:
            raise _unknown_tokenizer(
                json.dumps(step)[:200], f"spaces that become {SPACE}, nothing else"
            )
    return before


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the single steps of a normalizer or pre-tokenizer, an entry of tokenizer.json."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part.get("normalizers", part.get("pretokenizers", ())):
        yield from _steps(step)


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Return a score for each token, by which llama.cpp merges as the tokenizer does."""
    # the first merge that makes a piece decides, as in the merge order itself
    place: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        place.setdefault("".join(_merge_pair(merge)), rank)
    return [-float(place.get(token, len(merges))) for token in tokens]


def _merge_pair(merge: Any) -> Sequence[str]:
    """Return the two parts of a merge, which older files have as one text."""
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _sentencepiece_type(token: str, kind: int, unknown: str | None) -> int:
    """Return GGUF's type of a token: a byte as "<0x0A>", the unknown token, or the type it has."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return BYTE
    return UNKNOWN if token == unknown else kind


def _unknown_tokenizer(got: str, want: str) -> ExportError:
    return ExportError("tokenizer for GGUF", got=got, want=want, fix=ELSEWHERE)
