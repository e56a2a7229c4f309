"""What users read of a run: shares, cluster names, the table of steps, the summary, the status, and the inspection.

It reads the workdir, never writes to it, and does not start Ray. It may import the stages, for the names of their files, and
everything below them.
"""
