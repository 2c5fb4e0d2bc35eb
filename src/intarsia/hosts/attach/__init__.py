"""Put cells, through PEFT, or prompts beside a host, or train parts of it."""
