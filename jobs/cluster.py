"""Run up to and including `cluster`: `python jobs/cluster.py --config FILE`, or the same command under `ray job submit`."""

from pipeline.cli.commands import run_job

run_job("cluster")
