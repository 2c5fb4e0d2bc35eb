"""How a changed model comes out: folded, exported, packed."""
