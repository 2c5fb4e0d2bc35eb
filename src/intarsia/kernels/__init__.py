"""One folder for each operation: its slow twin, its fast ways, and the choice among them."""
