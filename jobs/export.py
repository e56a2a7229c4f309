"""Export the shards for a trainer: `python jobs/export.py --config FILE --to FORMAT`, or the same under `ray job submit`."""

from pipeline.cli.commands import run_job

run_job("export")
