"""Run the whole pipeline: `python jobs/curate.py --config FILE`, or the same command under `ray job submit`."""

from pipeline.cli.commands import run_job

run_job("curate")
