"""What every stage is run by: steps and their fingerprints, the lock of a workdir, progress, and the cache of this machine.

It imports the engine and the foundation, and knows no stage.
"""
