"""The command line: the only place that reads flags, the environment and files.

A command is one module here, named like it (`check-config` is check_config.py) with a click command `command`, and one
line in `main.COMMANDS`.
"""
