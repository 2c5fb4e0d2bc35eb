"""Tokens computed one at a time by native steps."""
