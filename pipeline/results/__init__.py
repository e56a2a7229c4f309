"""What is read from a workdir: shares, cluster names, the table of steps, the summary, the status, and the inspection of a run.

It starts no Ray and writes nothing. It may import the stages, for the names of their files, and everything below them.
"""
