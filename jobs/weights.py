"""Run up to and with `weights`: `python jobs/weights.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("weights")
