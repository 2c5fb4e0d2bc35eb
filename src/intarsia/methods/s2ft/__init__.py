"""S2FT: the method, its cell, its choice of channels, and the re-ordering that makes them runs."""
