"""Results: reports as data, their renderers, and paired differences with intervals."""
