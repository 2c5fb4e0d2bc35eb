"""Which language models run on native steps, from the code's own list."""

from __future__ import annotations

from transformers import CONFIG_MAPPING

from intarsia.decode.native_decoder import GROWING, KINDS

EXPERTS = ("num_local_experts", "num_experts")  # settings of mixtures
TORCH = ("Falcon", "GPT-NeoX", "Phi", "GLM", "OPT", "Llama 4", "Gemma 4", "RWKV")  # of HOSTS
INTRO = """## Which language models run on native steps

`intarsia generate` and `serve` compute a token of these families by one call of native steps,
whether dense, pruned or packed; `generate` says at its end which code it used. SmolLM2 is a Llama,
SmolLM3 a family of its own. GPT-OSS has them once `compress` has packed its experts.

| family | model type | |
|---|---|---|
"""
OTHERS = """| any other, such as {others} | | torch, the model's own forward |

A model of these families is computed by torch, too, where it has hooks, where no C compiler is
found, and where its rotation depends on the length of the text ({growing}).
"""


def section() -> str:
    """Return the part of docs/hosts.md on native steps, with a row for each model type."""
    return (
        INTRO
        + "".join(map(_row, KINDS))
        + OTHERS.format(others=", ".join(TORCH), growing=", ".join(GROWING))
    )


def _row(kind: str) -> str:
    """Return the row of a model type of transformers."""
    config = CONFIG_MAPPING[kind]
    settings = {**vars(config), **config.attribute_map, **vars(config())}
    mixture = any(name in settings for name in EXPERTS)
    code = "native steps" + ", and of its experts those that a token has" * mixture
    return f"| {config.__name__.removesuffix('Config')} | `{kind}` | {code} |\n"
