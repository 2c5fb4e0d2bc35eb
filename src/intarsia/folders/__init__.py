"""Folders of changed models: saved, opened, exported."""
