"""All that is generated, written by one process: `python -m intarsia_lab.cli.generating`."""

from __future__ import annotations

from pathlib import Path

DOCS = Path("docs")


def main() -> None:
    """Write the generated pages of docs/, and the modules that list the keys of cards and names.

    The lists are written first, since the modules imported later read them.
    """
    from ..pages import methods

    # The index of cards: `intarsia.cli.names` lists the methods in it.
    methods.write_all(DOCS)
    from intarsia.cli import names as library

    from . import names as laboratory

    library.write()
    laboratory.write()
    # Imported only now: these modules read the index and the names at import.
    from ..pages import composition, hosts, results, settings

    results.write_all(DOCS / "results.md")
    settings.write(DOCS)
    composition.write(DOCS)
    hosts.write(DOCS)


if __name__ == "__main__":
    main()
