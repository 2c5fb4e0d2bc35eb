"""Wrong calls of the verbs: each ends in one error of the library, and before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRIED = """
import json, sys
from intarsia.cli import app, shell
shown, ends = [], []
shell.show_error = lambda error: shown.append([type(error).__name__, str(error.got)])
for command in json.load(sys.stdin):
    shown.clear()
    try:
        app(command.split(), prog_name="intarsia")
    except SystemExit as end:
        ends.append([end.code, *shown])
    except BaseException as error:
        ends.append([repr(error)])
    heavy = {"torch", "transformers", "peft", "timm"} & sys.modules.keys()
    if heavy:
        ends[-1] = [f"imports {sorted(heavy)}"]
        break
print(json.dumps(ends))
"""
WRONG = [
    ("fit texts.csv --out texts.csv", "ConfigError", "a file"),
    ("fit notes.txt --out notes.txt", "ConfigError", "a file"),
    ("fit photos --out notes.txt", "ConfigError", "a file"),
    ("fit texts.csv --out photos", "ConfigError", "a folder of folders"),
    ("fit texts.csv --method nosuch", "UnknownName", "'nosuch'"),
    ("fit texts.csv --text nosuch --label label", "DataError", "'nosuch' not there"),
    ("fit other.csv --text text --label label", "DataError", "'text' and 'label' not there"),
    ("fit other.csv", "DataError", "['a', 'b']"),
    ("fit empty", "DataError", "an empty folder"),
    ("compare empty", "DataError", "an empty folder"),
    ("compare other.csv", "DataError", "['a', 'b']"),
    ("compare texts.csv --methods nosuch", "UnknownName", "'nosuch'"),
    ("compare texts.csv --out texts.csv", "ConfigError", "a file"),
    ("compare photos --out photos", "ConfigError", "the folder of the data, photos, or one in it"),
    ("compare photos --out notes.txt", "ConfigError", "a file"),
    ("compare photos --set lora.nosuch=3", "UnknownName", "'nosuch'"),
    ("compare photos --set nosuch.rank=3", "UnknownName", "'nosuch'"),
    ("auto empty", "DataError", "an empty folder"),
    ("auto photos --out photos", "ConfigError", "the folder of the data, photos, or one in it"),
    ("auto photos --minutes 0", "ConfigError", "0.0"),
    ("auto texts.csv --out texts.csv", "ConfigError", "a file"),
    ("auto texts.csv --out photos", "ConfigError", "a folder of folders"),
    ("auto texts.csv --methods nosuch", "UnknownName", "'nosuch'"),
    ("auto texts.csv --minutes 0", "ConfigError", "0.0"),
    ("generate nosuch x", "AssetError", None),
    ("generate empty x", "AssetError", "an empty folder"),
    ("generate idx x", "AssetError", "an index, of `intarsia index`"),
    ("generate notes.txt x", "AssetError", "a file"),
    ("generate model x --load empty", "ConfigError", "an empty folder"),
    ("generate model x --spans photos", "ConfigError", "a folder of folders"),
    ("compress nosuch --out z", "AssetError", None),
    ("compress photos --format blockint --out z", "AssetError", "a folder of folders"),
    ("compress empty --format chw --out z", "ConfigError", "an empty folder"),
    ("sparsify empty --out z", "AssetError", "an empty folder"),
    ("spans run --out s.json", "AssetError", "a run of `intarsia fit`"),
    ("trace notes.txt notes.txt --out t.safetensors", "AssetError", "a file"),
    ("convert photos --out z", "ConfigError", "a folder of folders"),
    ("evaluate run nosuch", "UnknownName", "'nosuch'"),
    ("evaluate run empty", "DataError", "an empty folder"),
    ("evaluate run --part nosuch", "UnknownChoice", "'nosuch'"),
    ("evaluate rows nosuch.csv", "DataError", "nothing there"),
    ("predict run nosuch.png", "DataError", "no such file"),
    ("predict rows nosuch.txt", "DataError", "no such file"),
    ("export rows --out notes.txt", "ConfigError", "a file that was not written like this"),
    ("export run --chosen", "ConfigError", "one run"),
    ("export empty --chosen", "DataError", None),
    ("export nosuch --format gguf", "AssetError", None),
    ("report empty", "DataError", None),
    ("report notes.txt", "DataError", None),
    ("blend run run --weights 1 --out b", "ConfigError", "1 for 2 runs"),
    ("place nosuch --devices 4 --out p.json", "DataError", "no such file"),
    ("place notes.txt --devices 4 --out p.json", "DataError", None),
    ("place t.safetensors --devices 0 --out p.json", "ConfigError", "0"),
    ("place t.safetensors --out p.json", "ConfigError", "neither"),
    ("place t.safetensors --topology nosuch --out p.json", "ConfigError", "nothing there"),
    ("simulate photos --devices 4", "DataError", "a folder of folders"),
    ("index nosuch.jsonl --out z", "DataError", "nothing there"),
    ("index nosuch --out z", "UnknownName", "'nosuch'"),
    ("index photos --out z", "DataError", "a folder of folders"),
    ("index other.csv --out z", "DataError", "keys ['a', 'b']"),
    ("index docs.jsonl --stored nosuch --out z", "UnknownChoice", "'nosuch'"),
    ("index docs.jsonl --prune 7 --out z", "ConfigError", "7.0"),
    ("index docs.jsonl --form qdrant --out b", "CheckpointError", "a file"),
    ("search nosuch printer", "CheckpointError", "no such folder"),
    ("search run printer", "CheckpointError", "a run of `intarsia fit`"),
    ("search idx --queries nosuch.txt --out r.trec", "ConfigError", "nothing there"),
    ("recommend recommender --user 1 --new nosuch.item", "ConfigError", "nothing there"),
    ("serve nosuch", "AssetError", None),
    ("serve x=empty", "AssetError", "an empty folder"),
    ("serve model --adapter a=nosuch", "ConfigError", "no such folder"),
    ("bench mini --out notes.txt", "ConfigError", "a file"),
    ("bench sparse --model empty", "AssetError", "an empty folder"),
    ("serve model --port 70000", "ConfigError", "70000"),
    ("serve model --tokens 0", "ConfigError", "0"),
    ("serve model --context 1", "ConfigError", "1"),
    ("serve model --at-once 0", "ConfigError", "0"),
    ("serve model --queue -1", "ConfigError", "-1"),
    ("serve model --body 10", "ConfigError", "10"),
    ("serve model --seconds 0", "ConfigError", "0.0"),
    ("serve model --drain -1", "ConfigError", "-1.0"),
    ("serve model --arrival nan", "ConfigError", "nan"),
    ("serve model --batching nosuch", "UnknownChoice", "'nosuch'"),
    ("serve model --threads 0", "ConfigError", "0"),
    ("serve model --slots 1", "ConfigError", "'1'"),
    ("serve model --memory lots", "ConfigError", "'lots'"),
    ("generate model x --tokens 1", "ConfigError", "1"),
    ("generate model x --spans notes.txt", "CheckpointError", None),
    ("generate model x --spans model/config.json", "CheckpointError", None),
    ("spans model --density 0 --out s.json", "ConfigError", "0.0"),
    ("spans model --lengths 512,x --out s.json", "ConfigError", "'512,x'"),
    ("spans model --lengths 0 --out s.json", "ConfigError", "(0,)"),
    ("spans model --check 1 --out s.json", "ConfigError", "1"),
    ("spans model --extend 1 --out s.json", "ConfigError", "1"),
    ("spans model --sink -1 --out s.json", "ConfigError", "-1"),
    ("spans model --block 0 --out s.json", "ConfigError", "0"),
    ("spans model --answer 0 --out s.json", "ConfigError", "0"),
    ("predict run a.png --tokens 0", "ConfigError", "0"),
    ("evaluate run --size 0", "ConfigError", "0"),
    ("codec train photos --bits-per-pixel 0 --out z", "ConfigError", "0.0"),
    ("codec encode a.png --steps 0", "ConfigError", "0"),
    ("index docs.jsonl --megabytes 0 --out z", "ConfigError", "0"),
    ("search idx printer -k 0", "ConfigError", "0"),
    ("search idx --serve --port 70000", "ConfigError", "70000"),
    ("recommend recommender --user 1 -k 0", "ConfigError", "0"),
    ("components model --atoms 1", "ConfigError", "1"),
    ("cycles resnet18 --side 0", "ConfigError", "0"),
    ("combine model austen --calibration 0", "ConfigError", "0"),
    ("trace model austen --rows 0 --out t.safetensors", "ConfigError", "0"),
    ("unlearn model --forget austen --lr 0 --out z", "ConfigError", "0.0"),
    ("unlearn model --forget austen --until 0 --out z", "ConfigError", "0.0"),
    ("simulate t.safetensors --devices 4 --slots 1", "ConfigError", "1"),
    ("simulate t.safetensors --devices 4 --streams 0", "ConfigError", "0"),
    ("simulate t.safetensors --devices 4 --expert 3y4", "ConfigError", "'3y4'"),
    ("simulate t.safetensors --topology notes.txt", "DataError", None),
    ("simulate t.safetensors --topology five.json", "UnknownName", "'gpus'"),
    ("place t.safetensors --devices 4 --redundant -1 --out p.json", "ConfigError", "-1"),
    ("compress model --bits 9 --out z", "ConfigError", "9"),
    ("compress model --density 0 --out z", "ConfigError", "0.0"),
    ("compress model --shared 3 --out z", "ConfigError", "3"),
    ("sparsify model --test -1 --out z", "ConfigError", "-1"),
    ("sparsify model --recover 0 --out z", "ConfigError", "0.0"),
    ("sparsify model --pattern 4:2 --out z", "ConfigError", "'4:2'"),
    ("demo --size 0", "ConfigError", "0"),
    ("demo --images 0", "ConfigError", "0"),
    ("demo --seeds -1", "ConfigError", "'-1'"),
    ("compare photos --baseline nosuch", "UnknownName", "'nosuch'"),
    ("compare photos --seeds 0,x", "ConfigError", "'0,x'"),
    ("compare photos --jobs 0", "ConfigError", "0"),
    ("compare texts.csv --baseline nosuch", "UnknownName", "'nosuch'"),
    ("auto --resume --out empty", "ConfigError", "an empty folder"),
    ("auto --resume", "ConfigError", "no folder"),
    ("auto photos --resume --out run", "ConfigError", "a run of `intarsia fit`"),
    ("auto texts.csv --resume --out empty", "ConfigError", "an empty folder"),
    ("bench mini --methods nosuch", "UnknownName", "'nosuch'"),
    ("bench mini --baseline nosuch", "UnknownName", "'nosuch'"),
    ("bench mini --methods lora --baseline ssf", "UnknownName", "'ssf'"),
    ("bench mini --heads nosuch", "UnknownChoice", "'nosuch'"),
    ("bench mini --size 0", "ConfigError", "0"),
    ("bench mini --last-blocks -1", "ConfigError", "-1"),
    ("bench mini --fraction 0", "ConfigError", "0.0"),
    ("bench mini --budget 0", "ConfigError", "0.0"),
    ("compare-routers austen --routers topk --baseline nosuch", "UnknownName", "'nosuch'"),
    ("compare-routers austen --routers topk --steps 0", "ConfigError", "0"),
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The end of each command, all in one process, in a folder with a thing of each kind."""
    place = tmp_path_factory.mktemp("stranger")
    for name in ("empty", "photos/dark", "photos/light"):
        (place / name).mkdir(parents=True)
    (place / "photos/dark/1.png").touch()
    for file, text in {
        "texts.csv": "text,label\ngood,pos\nbad,neg\n",
        "other.csv": "a,b\n1,2\n",
        "notes.txt": "a line\n" * 9,
        "docs.jsonl": '{"id": "a", "text": "loud"}\n',
        "run/experiment.json": "{}",
        "rows/labelled.json": "{}",
        "idx/meta.json": "{}",
        "model/config.json": "{}",
        "recommender/card.json": "{}",
        "five.json": '{"gpus": 5}',
    }.items():
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_text(text)
    trace_file(place / "t.safetensors")
    commands = json.dumps([command for command, _, _ in WRONG])
    words = [sys.executable, "-c", TRIED]
    done = subprocess.run(
        words, cwd=place, input=commands, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip((command for command, _, _ in WRONG), found, strict=False))


def trace_file(path: Path) -> None:
    """Write a file with the head of a trace, which is all that is read of it here."""
    head = json.dumps({"__metadata__": {"format": "intarsia trace"}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)


@pytest.mark.parametrize(
    ("command", "kind", "got"), WRONG, ids=[command for command, _, _ in WRONG]
)
def test_a_wrong_call_is_refused_before_torch(
    command: str, kind: str, got: str | None, ends: dict[str, list[Any]]
) -> None:
    assert command in ends, "an earlier command imported torch"
    code, *shown = ends[command]
    assert code == 2 and len(shown) == 1, ends[command]
    assert shown in ([[kind, got]], [[kind, shown[0][1]]] if got is None else [])
