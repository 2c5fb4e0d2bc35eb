"""`python -m intarsia` is the `intarsia` command."""

from intarsia.cli import main

if __name__ == "__main__":
    main()
