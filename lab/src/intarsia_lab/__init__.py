"""The laboratory: claims of papers, benchmark suites, and the pages that are made of them."""
