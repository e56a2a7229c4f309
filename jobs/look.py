"""Look into a run: `python jobs/look.py --config FILE`, and one of `--cluster`, `--document`, `--window`, `--find`, `--like`."""

from pipeline.cli.commands import look_job

look_job()
