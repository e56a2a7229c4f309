"""Terminal output: `output` manages the streams, `progress` shows how far a run is, `formatting` formats amounts.

It imports no other package of this project.
"""
