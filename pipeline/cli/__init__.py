"""The command line: `commands` declares the commands, `guard` runs one and turns errors into one line and an exit status,
`doctor` checks the environment.

It may import everything; only `jobs/` and the installed command `crispwrap` import it.
"""
