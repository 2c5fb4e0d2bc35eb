"""Turn a changed model into one of plain weights."""
