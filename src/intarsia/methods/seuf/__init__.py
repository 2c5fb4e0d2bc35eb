"""SEUF: the method, and a run of unlearning with its losses."""
