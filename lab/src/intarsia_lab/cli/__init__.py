"""The verbs that `intarsia` has where the laboratory is installed."""
