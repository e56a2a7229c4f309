"""Run up to and with `rephrase`: `python jobs/rephrase.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("rephrase")
