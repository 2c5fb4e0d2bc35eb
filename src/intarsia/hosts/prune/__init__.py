"""A model pruned block by block: what each layer sees, what is kept, and how it is written."""
