"""Malformed files for every kind of file that a user can hand over: `python -m tests.fuzz`."""
