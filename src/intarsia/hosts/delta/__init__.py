"""Apply, add and save changes of single weights."""
