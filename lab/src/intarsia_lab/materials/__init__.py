"""Suites of published tasks, and pictures and texts that are rendered here."""
