"""Run up to and with `sample`: `python jobs/sample.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("sample")
