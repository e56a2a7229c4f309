"""Run up to and with `prepare`: `python jobs/prepare.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("prepare")
