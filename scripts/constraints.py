"""Write constraints.txt: the version of every package that `intarsia[dev]` needs, as it is here.

    python scripts/constraints.py

Run it in the environment in which the suite has passed. Public versions alone are written, so that
`torch==2.13.0` stands for the builds for CPUs and for GPUs, and pip takes the one that it finds.
Packages that only a build for GPUs needs are left out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OF_GPUS = ("nvidia-", "triton", "cuda-")


def requirements(extra: str) -> Iterator[Requirement]:
    """Yield the requirements of this project with an extra, and of the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"][extra]):
        requirement = Requirement(text)
        if requirement.name != project["name"]:
            yield requirement
        for inner in requirement.extras if requirement.name == project["name"] else ():
            yield from requirements(inner)


def versions() -> dict[str, str]:
    """Return the public version of each package that is reached from the requirements."""
    found: dict[str, str] = {}
    left = list(requirements("dev"))
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name.startswith(OF_GPUS):
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform or Python
            continue
        found[name] = Version(package.version).public
        for text in package.requires or ():
            inner = Requirement(text)
            named = ({"extra": extra} for extra in ("", *extras))
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in named):
                left.append(inner)
    return found


if __name__ == "__main__":
    lines = [f"{name}=={version}\n" for name, version in sorted(versions().items())]
    (ROOT / "constraints.txt").write_text("".join(lines))
