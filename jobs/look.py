"""Look into a run: `python jobs/look.py --config FILE [--cluster N | --document ID | --find WORDS | --like TEXT]`."""

from pipeline.cli import look_job

look_job()
