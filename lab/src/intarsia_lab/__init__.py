"""The laboratory: experiments on papers, benchmark suites, and the pages that are made of them."""
