"""The pipeline graph: `graph` builds the steps of a config, `preflight` rejects infeasible configs, `steps` and `runner` run steps.

It may import the stages, the results and the report; only the command line and the evidence harness import it.
"""
