"""Inspect a run: `python jobs/look.py --config FILE` with one of `--cluster`, `--document`, `--window`, `--find`, `--like`."""

from pipeline.cli.commands import run_job

run_job("inspect")
