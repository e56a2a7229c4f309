"""Run up to and with `cluster`: `python jobs/cluster.py --config FILE`, or the same under `ray job submit --working-dir . --`."""

from pipeline.cli.commands import job

job("cluster")
