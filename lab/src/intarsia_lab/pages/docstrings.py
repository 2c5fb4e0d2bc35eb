"""Docstrings of the reference as Markdown with typeset formulas: an extension of griffe.

mkdocs.yml names it, so that pages of the reference read as those of the methods do.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe

from .prose import markdown


class Typeset(griffe.Extension):
    """Extension that has griffe give docstrings as the Markdown of `prose.markdown`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace an object's docstring as soon as it is read."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(inspect.cleandoc(obj.docstring.value), {})
