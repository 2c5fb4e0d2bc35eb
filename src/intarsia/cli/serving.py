"""`intarsia serve`: language models behind OpenAI's routes, or a classifier, on this machine."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.checks import bytes_of
from ..core.errors import ConfigError, DataError, MissingExtra
from ..core.registry import unpredicted_policies
from ..core.schema import setting
from ..serve.settings import Limits
from .declared import with_options
from .early import check_served
from .labelled_steps import is_rows_run
from .options import Threads, flag, given_in_words, use_threads
from .shell import note, say, warn

if TYPE_CHECKING:
    from ..runs.labelled import LabelledRun

PATH = "/predict"
MOST = 256  # texts of a question
TAKEN = ("port", "threads")  # options of `serve` that mean something here
DTYPES = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("transformers", "vllm")
NEEDS = ("starlette", "uvicorn", "prometheus_client")


Models = Annotated[
    list[str],
    typer.Argument(
        help="Folders of models from save_pretrained, `offload`, `compress` or `sparsify`, or "
        "NAME=FOLDER; or one run on labelled texts."
    ),
]


def _check_memory(text: str) -> None:
    if bytes_of(text) is None:
        want, fix = "a size in KB, MB or GB", "For example: --memory 8GB"
        raise ConfigError("--memory", got=repr(text), want=want, fix=fix)


@dataclass(frozen=True)
class Opening:
    """Settings of the models: their adapters, and the memory of their experts and weights."""

    adapter: tuple[str, ...] = setting(
        (),
        "Adapter or change as NAME=FOLDER, served as a model of that name; may be repeated.",
    )
    slots: str | None = setting(
        None, "Experts in memory: a number, or a share below 1; makes FOLDER-experts."
    )
    memory: str | None = setting(
        None,
        "Memory for experts, such as 8GB, in place of --slots; others stay on disk.",
        test=_check_memory,
    )
    policy: str = setting(
        "expected", "Policy by which experts leave memory.", choices=unpredicted_policies
    )
    dtype: str = setting(
        "auto", "Type of the weights in memory; auto: that of their file.", choices=DTYPES
    )
    context: int = setting(4096, "Tokens of prompt and answer, at most.", least=2)


@dataclass(frozen=True)
class Serving:
    """The address of a server, and what computes behind it."""

    host: str = setting(
        "127.0.0.1", "Address to listen on; any but loopback lets other machines in."
    )
    port: int = setting(
        8000,
        "Port to listen on; 0 = any that is free.",
        least=0,
        most=65535,
        fix="Try 8000.",
    )
    engine: str = setting(
        "transformers",
        "Engine: transformers, or vllm, to which a stock checkpoint is handed over.",
        choices=ENGINES,
        fix="Leave it out.",
    )


@with_options()
def serve(
    ctx: typer.Context,
    models: Models,
    opening: Opening,
    serving: Serving,
    limits: Limits,
    threads: Threads = None,
) -> None:
    """Serve language models and their adapters over HTTP, as OpenAI's clients ask for them.

    Routes: /v1/completions, /v1/chat/completions, /v1/responses, /v1/models, /health, /metrics, and
    a page to try it at /. Only models and adapters named here are served. SIGTERM and Ctrl-C let it
    finish what it has taken. A run on labelled texts gets a page, and POST /predict. It computes on
    as many threads as --threads says, torch's own choice being one for each core; models share
    them.

    Example:  intarsia serve runs/nouns --port 8100
    Example:  intarsia serve my-mixtral --slots 0.25 --adapter med=out1 --adapter law=out2
    """
    if opening.slots is not None and opening.memory is not None:
        fix = "Keep one of them."
        raise ConfigError("--memory", got="--slots, too", want="one of the two", fix=fix)
    if len(models) == 1 and is_rows_run(models[0]):
        use_threads(threads)
        serve_rows(Path(models[0]), serving.port, given_in_words(ctx))
        return
    room = opening.memory if opening.memory is not None else _slots(opening.slots)
    adapters, address = list(opening.adapter), (serving.host, serving.port)
    if serving.engine == "vllm":
        _to_vllm(models, adapters, room, *address)
        return
    use_threads(threads)
    # Found without importing them: importing takes seconds.
    if missing := next((name for name in NEEDS if find_spec(name) is None), None):
        raise MissingExtra(missing, "serve")
    check_served(models, adapters)
    opened = {"slots": room, "context": opening.context, "dtype": opening.dtype}
    # A policy decides which experts stay in memory: without slots all of them do.
    opened["policy"] = _policy(opening.policy) if room is not None else None
    _serve(models, adapters, limits, address, opened)


def _serve(
    models: list[str],
    adapters: list[str],
    limits: Limits,
    address: tuple[str, int],
    opened: dict[str, Any],
) -> None:
    """Open the models, which may take minutes, and serve them until SIGTERM or Ctrl-C."""
    from ..serve.app import Application
    from ..serve.models import open_models
    from ..serve.naming import names_of
    from ..serve.running import bound, hosts_of, is_local, run

    host, _ = address
    sources, folders = names_of(models), names_of(adapters)
    # The address is taken first: a port in use is reported at once, not after minutes of loading.
    with closing(bound(*address)) as listening:
        if not is_local(host):
            # The server has no keys: it is for this machine, or for a network that is trusted.
            warn(f"Whoever reaches {host} can use this server; it asks for no key.")
        places = {name: Path(folder) for name, folder in folders.items()}
        served = open_models(sources, places, progress=note, **opened)
        say(f"Models: {', '.join(served)}")
        # Returns after SIGTERM or Ctrl-C, when the requests in the works are done or out of time.
        cut = run(Application(served, limits, hosts_of(host)), listening, say)
    if cut:
        warn(f"Cut off {cut} requests that were not done in --drain {limits.drain:g} seconds.")
    else:
        note("Finished what was in the works.")


def _slots(text: str | None) -> int | float | None:
    """Parse --slots: the number of experts in memory, or a share of all; None = no limit."""
    if text is None:
        return None
    # "1" would be one slot and "1.0" all experts: the point decides which.
    numeric = text.strip().isdecimal()
    try:
        value: float = int(text) if numeric else float(text)
    except ValueError:
        value = -1
    # One expert is computed while another is loaded, so a single slot cannot work.
    if not (value >= 2 if numeric else 0 < value <= 1):
        want, fix = "2 or more, or a share below 1", "For example: --slots 0.25, or --memory 8GB"
        raise ConfigError("--slots", got=repr(text), want=want, fix=fix)
    return value


def _policy(name: str) -> Any:
    from ..core.registry import card

    return card(name).config()


def _to_vllm(models: list[str], adapters: list[str], room: object, host: str, port: int) -> None:
    """Print and run the vllm command that serves one model with its adapters; does not return."""
    # vllm keeps all experts of its one model in memory.
    if room is not None or len(models) != 1:
        got = "--slots or --memory" if room is not None else f"{len(models)} models"
        fix = "Leave it out, or serve with --engine transformers."
        raise ConfigError("--engine vllm", got=got, want="one resident model", fix=fix)
    from ..serve.naming import names_of
    from ..serve.vllm import command, hand_over

    ((name, folder),) = names_of(models).items()
    folders = {key: Path(path) for key, path in names_of(adapters).items()}
    # printed first, so that it can be repeated by hand
    words = command(name, folder, folders, host, port)
    say(shlex.join(words))
    hand_over(words)


def answers(run: LabelledRun) -> dict[str, Any]:
    """Return the function that answers {"texts": [...]} with the classes of each, by its path."""
    # features are read by hooks in the one model: requests take turns
    turn = Lock()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Return the class and all probabilities of each text.  Raises: DataError."""
        texts: Any = question.get("texts")
        listed = isinstance(texts, list) and 0 < len(texts) <= MOST
        if not (listed and all(isinstance(text, str) and text.strip() for text in texts)):
            want, fix = f"1 to {MOST} texts that are not empty", 'For example {"texts": ["..."]}.'
            raise DataError("question", got=sorted(question), want=want, fix=fix)
        with turn:
            return {"answers": run.predict(texts)}

    return {PATH: answer}


def page_of(run: LabelledRun) -> str:
    """Return the HTML page to try the classifier."""
    from ..reports.page import live
    from ..reports.report import Report

    lead = f"{run.settings.method} tells {len(run.classes)} classes apart."
    title = f"Classify texts, by {run.folder.resolve().name}"
    return live(Report(title, (lead,), eyebrow="intarsia serve"), "classify")


def serve_rows(folder: Path, port: int, words: set[str]) -> None:
    """Serve the predictor until Ctrl-C.

    words: names of the options that were given.
    Raises: ConfigError for a run on numbers, and for options that language models have alone.
    """
    if strange := sorted(words - {"models", *TAKEN}):
        got, want = (", ".join(map(flag, names)) for names in (strange, TAKEN))
        raise ConfigError("options for labelled texts", got=got, want=want, fix="Leave it out.")
    from ..reports.local_page import serve_page
    from ..runs.labelled import open_labelled

    run = open_labelled(folder)
    if run.columns:
        fix = "Use intarsia predict, or intarsia export, which writes predict.py."
        raise ConfigError("model to serve", got="a run on numbers", want="one on texts", fix=fix)
    say(f'Ask: POST {PATH} with JSON {{"texts": ["..."]}}')
    serve_page(page_of(run), answers(run), port, say, note)
