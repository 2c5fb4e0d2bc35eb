"""What a host is made of: blocks, sites, gates, weights and their fingerprint."""
