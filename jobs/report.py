"""Write the page of a run, <workdir>/report.html: `python jobs/report.py --config FILE [--against FILE]`."""

from pipeline.cli.commands import report_job

report_job()
