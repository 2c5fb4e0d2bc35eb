"""Recommenders: what a user, or a session, wants next."""
