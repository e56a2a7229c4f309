"""Write the report page of a run, <workdir>/report.html: `python jobs/report.py --config FILE [--against FILE]`."""

from pipeline.cli.commands import run_job

run_job("report")
