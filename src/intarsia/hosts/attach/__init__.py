"""What is put beside a host or trained in it: cells through PEFT, prompts, parts."""
