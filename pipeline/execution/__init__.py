"""What all stages share: steps, fingerprints, the record of a pipeline graph, the workdir lock, and the cache of this machine.

It imports the engine and the foundation, and knows no individual stage.
"""
