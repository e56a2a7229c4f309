"""Run up to and with `embed`: `python jobs/embed.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("embed")
