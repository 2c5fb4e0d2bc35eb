"""Begin a method of any kind: its file, its test file and its line in the changelog.

make new KIND=router NAME=relu PAPER=2412.14711

The template of a kind is a small method that works and keeps all laws of its kind; change it into
that of the paper, and call `make generate`, which writes all the rest.
"""

from __future__ import annotations

import argparse
import keyword
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template

from intarsia.core.checks import one_of
from intarsia.core.errors import ConfigError, IntarsiaError
from intarsia.core.exports import homes
from intarsia.core.registry import index

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).with_name("templates")
FOLDERS = {
    "adapter": "adapters",
    "baseline": "methods",
    "cache": "placement",
    "change": "methods",
    "format": "formats",
    "mixture": "mixtures",
    "model": "models",
    "objective": "train",
    "parallel": "parallel",
    "partition": "partitions",
    "placement": "placement",
    "recipe": "methods",
    "router": "routers",
    "schedule": "schedules",
    "score": "scores",
    "training": "methods",
    "unlearning": "methods",
}
"""The folder in which a new method of each kind begins."""
EXAMPLE = "For example: make new KIND=router NAME=relu PAPER=2412.14711"
UNRELEASED, ADDED = "## [Unreleased]\n", "### Added\n"
# what every template has: the beginning of its card, and the test of its settings
SHARED = {
    "card": """CARD = Card(
    "$key",
    kind="$kind",
    config=$Name,
    paper=Paper("$paper", $year, $quoted),""",
    "refused": """def test_a_setting_out_of_range_is_refused(name: str, value: Any) -> None:
    with refused(ConfigError, what=name):
        $Name(**{name: value})""",
}


def values(kind: str, key: str, paper: str, title: str = "") -> dict[str, str]:
    """Return the text of each of the templates' placeholders.

    Raises: ConfigError for a kind that does not exist, a name that cannot be that of a module or
    that a method has, and for no arXiv number.
    """
    one_of("kind", kind, FOLDERS, fix=EXAMPLE)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or keyword.iskeyword(key) or key in index():
        want = "a lower-case name of letters, digits and _ that no method has"
        fix = f"`intarsia list` prints those taken. {EXAMPLE}"
        raise ConfigError("name", got=repr(key), want=want, fix=fix)
    if not re.fullmatch(r"\d{4}\.\d{4,5}", paper):
        raise ConfigError("paper", got=repr(paper), want="an arXiv number", fix=EXAMPLE)
    name = "".join(part.capitalize() for part in key.split("_"))
    title = title.replace('"', "'") or name
    # a long title takes several lines, as adjacent strings
    lines = textwrap.wrap(title.replace("\\", "\\\\"), 80)
    quoted = " ".join(f'"{line} "' for line in lines)[:-2] + '"'
    texts = {"kind": kind, "key": key, "Name": name, "paper": paper, "year": f"20{paper[:2]}"}
    texts |= {"title": title, "quoted": quoted}
    return texts | {part: Template(text).substitute(texts) for part, text in SHARED.items()}


def write(texts: Mapping[str, str], root: Path = ROOT) -> list[Path]:
    """Write the files of a new method, and return them.  texts: of `values`.

    Raises: ConfigError where one exists, or a name in them would have a second meaning.
    """
    kind, key = texts["kind"], texts["key"]
    folder = root / "src" / "intarsia" / FOLDERS[kind]
    contents = {
        path: Template((TEMPLATES / template).read_text()).substitute(texts)
        for path, template in (
            (folder / f"{key}.py", f"{kind}.txt"),
            (root / "tests" / FOLDERS[kind] / f"test_{key}.py", f"{kind}_test.txt"),
        )
    }
    for path in contents:
        if path.exists():
            got, fix = f"{path.relative_to(root)} exists", "Choose another NAME."
            raise ConfigError("name", got=got, want="a new file", fix=fix)
    _check_meanings(kind, key, folder, next(iter(contents.values())), root)
    for path, text in contents.items():
        path.write_text(text)
    _format(contents)
    log = root / "CHANGELOG.md"
    line = f"- `{texts['Name']}`: {texts['title']} (arXiv:{texts['paper']}).\n"
    log.write_text(with_change(log.read_text(), line))
    return [*contents, log]


def with_change(log: str, line: str) -> str:
    """Return the changelog with a line more in *Added* of *Unreleased*, which may be missing."""
    before, heading, rest = log.partition(UNRELEASED)
    section, mark, earlier = rest.partition("\n## ")
    if ADDED not in section:
        section = f"\n{ADDED}{section}"
    first, added, lines = section.partition(ADDED)
    lines = lines.lstrip("\n")
    # another heading needs an empty line before it, a further line of the list does not
    gap = "\n" if lines and not lines.startswith("- ") else ""
    return f"{before}{heading}{first}{added}\n{line}{gap}{lines}{mark}{earlier}"


def _check_meanings(kind: str, key: str, folder: Path, text: str, root: Path) -> None:
    """Raise ConfigError where the module or one of its classes has the name of something else."""
    stub = folder / "__init__.pyi"
    # an imported module would hide a function of its own name in its folder
    if stub.exists() and key in homes(stub):
        got = f"{key!r}, a public name of intarsia.{FOLDERS[kind]}"
        raise ConfigError("name", got=got, want="a new name", fix="Choose another NAME.")
    classes = "|".join(re.findall(r"^class (\w+)", text, re.MULTILINE))
    definition = re.compile(rf"^class ({classes})\b", re.MULTILINE)
    for path in (p for base in ("src", "lab/src") for p in sorted((root / base).rglob("*.py"))):
        if match := definition.search(path.read_text()):
            got = f"{key!r}; {path.relative_to(root)} has a class {match[1]}"
            raise ConfigError("name", got=got, want="a new class", fix="Choose another NAME.")


def _format(paths: Iterable[Path]) -> None:
    """Sort the imports and wrap the lines, which depend on the length of the name."""
    files = [str(path) for path in paths]
    for verb in (("check", "--select", "I", "--fix"), ("format",)):
        command = [sys.executable, "-m", "ruff", *verb, "--quiet", "--no-cache", *files]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", help=f"one of {', '.join(FOLDERS)}")
    parser.add_argument("name", help="of its file, such as expert_choice")
    parser.add_argument("paper", help="its arXiv number")
    parser.add_argument("--title", default="", help="of the paper")
    args = parser.parse_args()
    try:
        written = write(values(args.kind, args.name, args.paper, args.title))
    except IntarsiaError as error:
        parser.exit(1, f"{error}\n")
    for path in written:
        print(path.relative_to(ROOT))
    print("Then: make generate")


if __name__ == "__main__":
    main()
