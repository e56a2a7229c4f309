"""How far the latest run is, from any machine: `python jobs/status.py --config FILE [--follow]`; so too under `ray job submit`."""

from pipeline.cli.commands import status_job

status_job()
