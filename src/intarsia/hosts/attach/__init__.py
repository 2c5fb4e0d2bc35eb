"""Add cells, through PEFT, or prompts to a host, or train parts of it."""
