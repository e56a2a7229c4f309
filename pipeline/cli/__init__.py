"""The command line of the jobs. It may import everything; nothing but `jobs/` imports it."""
