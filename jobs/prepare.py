"""Run up to and including `prepare`: `python jobs/prepare.py --config FILE`, or the same command under `ray job submit`."""

from pipeline.cli.commands import run_job

run_job("prepare")
