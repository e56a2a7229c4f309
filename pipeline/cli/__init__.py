"""The command line: `commands` declares the commands, `guard` runs one and turns errors into one line and an exit status.

It may import everything; only `jobs/` imports it.
"""
