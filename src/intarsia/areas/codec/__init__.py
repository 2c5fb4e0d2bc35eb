"""A codec of signals as the weights of small networks; its parts from draws to files."""
