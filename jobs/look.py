"""Inspect a run: `python jobs/look.py --config FILE` with one of `--cluster`, `--document`, `--window`, `--find`, `--like`."""

from pipeline.cli.commands import run_look_job

run_look_job()
