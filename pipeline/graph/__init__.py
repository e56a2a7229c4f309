"""The pipeline graph: `graph` builds the steps of a config, `preflight` rejects what cannot succeed, `steps` and `runner` run them.

It imports the stages, the results and the report; only the command line and the evidence harness import it.
"""
