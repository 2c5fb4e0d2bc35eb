"""Runs as data: what one is made of, how it is carried out, and several side by side."""

INTERRUPTED = 130
"""Exit code of a run that was stopped by Ctrl-C and can go on: 128 + SIGINT, as shells have it."""
