"""Begin a method: its file, its test file and its line in the changelog, from a template.

make new KIND=router NAME=relu PAPER=2412.14711

The template is a small method that works and keeps all laws; change it into that of the paper, and
call `make generate`, which writes all the rest.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from string import Template

from intarsia.core.errors import ConfigError, IntarsiaError
from intarsia.core.registry import index

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).with_name("templates")
FOLDERS = {"adapter": "adapters", "router": "routers"}
ADDED = "## [Unreleased]\n\n### Added\n\n"


def values(key: str, paper: str, title: str) -> dict[str, str]:
    """What the templates' placeholders stand for.

    Raises: ConfigError for a name that is taken or is no module's, or no arXiv number.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or key in index():
        want = "a lower-case name of letters, digits and _ that no method has"
        raise ConfigError(
            "name", got=repr(key), want=want, fix="`intarsia list` prints those taken."
        )
    if not re.fullmatch(r"\d{4}\.\d{4,5}", paper):
        raise ConfigError("paper", got=repr(paper), want="an arXiv number", fix="2412.14711, say.")
    name = "".join(part.capitalize() for part in key.split("_"))
    title = title.replace('"', "'") or name
    return {"key": key, "Name": name, "paper": paper, "year": f"20{paper[:2]}", "title": title}


def write(kind: str, given: dict[str, str], root: Path = ROOT) -> list[Path]:
    """Write the files of a new method, and return them.

    Raises: ConfigError where one exists.
    """
    folder, key = FOLDERS[kind], given["key"]
    made = {
        root / "src" / "intarsia" / folder / f"{key}.py": f"{kind}.txt",
        root / "tests" / folder / f"test_{key}.py": f"{kind}_test.txt",
    }
    for path in made:
        if path.exists():
            raise ConfigError("new file", got=f"{path} exists", want="none", fix="Move it away.")
    for path, template in made.items():
        path.write_text(Template((TEMPLATES / template).read_text()).substitute(given))
    log = root / "CHANGELOG.md"
    line = f"- `{given['Name']}`: {given['title']} (arXiv:{given['paper']}).\n"
    log.write_text(log.read_text().replace(ADDED, ADDED + line, 1))
    return [*made, log]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=sorted(FOLDERS))
    parser.add_argument("name", help="of its file, such as expert_choice")
    parser.add_argument("--paper", required=True, help="its arXiv number")
    parser.add_argument("--title", default="", help="of the paper")
    args = parser.parse_args()
    try:
        made = write(args.kind, values(args.name, args.paper, args.title))
    except IntarsiaError as error:
        parser.exit(1, f"{error}\n")
    for path in made:
        print(path.relative_to(ROOT))
    print("Then: make generate")


if __name__ == "__main__":
    main()
