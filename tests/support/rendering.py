"""Text of what the commands print."""

from collections.abc import Iterable

from rich.console import Console, RenderableType


def render(lines: Iterable[RenderableType]) -> str:
    """Return the text that a wide terminal without colours shows."""
    console = Console(width=1000, highlight=False, markup=False)
    with console.capture() as capture:
        for line in lines:
            console.print(line)
    return capture.get()
