"""Routers next to each other: their table, figures and page, out of the cells' rows."""
