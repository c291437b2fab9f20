"""Composition roots: what a command is made of, wired by constructor calls."""
