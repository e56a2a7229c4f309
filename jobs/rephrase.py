"""Run up to and including `rephrase`: `python jobs/rephrase.py --config FILE`, or the same command under `ray job submit`."""

from pipeline.cli.commands import run_stage_job

run_stage_job("rephrase")
