"""Compare corpora: `python jobs/evidence.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import evidence_job

evidence_job()
