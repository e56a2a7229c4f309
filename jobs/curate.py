"""Run the whole pipeline: `python jobs/curate.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("sample")
