"""Retrieval: sparse vectors of documents, queries that need no model, an index of posting lists."""
