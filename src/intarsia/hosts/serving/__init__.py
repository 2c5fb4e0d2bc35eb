"""Language models behind the OpenAI routes of transformers' own server, on this machine alone."""
