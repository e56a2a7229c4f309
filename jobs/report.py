"""Write the report page of a run, <workdir>/report.html: `python jobs/report.py --config FILE [--against FILE]`."""

from pipeline.cli.commands import run_report_job

run_report_job()
