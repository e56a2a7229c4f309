"""The command line of the jobs: options, exit status, what is printed. It may import every other package."""
