"""Show the status of the latest run, from any machine: `python jobs/status.py --config FILE [--follow]`."""

from pipeline.cli.commands import run_job

run_job("status")
