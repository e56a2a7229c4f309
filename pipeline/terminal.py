"""The console that jobs print their outcome to."""

import sys

from rich.console import Console

# A log has no width: there, lines are as long as tables like.
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 130)
