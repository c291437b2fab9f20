"""The prefix index: which worker holds how much of a prompt's beginning.

`contract` says what any implementation promises; `reference` is the slow, obviously right one.
"""
