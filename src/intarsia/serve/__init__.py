"""Language models behind OpenAI's routes, on this machine alone."""
