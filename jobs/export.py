"""Write the shards as trainers read them: `python jobs/export.py --config FILE --to FORMAT`; so too under `ray job submit`."""

from pipeline.cli.commands import export_job

export_job()
