"""Read a host's structure: blocks, sites, gates, weights and their fingerprint."""
