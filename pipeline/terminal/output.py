"""The terminal of a job: results go to standard output, the log and errors to standard error, and either takes any text.

What Ray, vLLM and native code print is neither: they write to the file descriptors 1 and 2, where no filter of Python's logging
reaches. While a job runs, these lead to a file (`Captured`), and the consoles here have the terminal to themselves.
"""

import faulthandler
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleDimensions

_UTF8 = "utf-8"
# Of whatever a terminal cannot show, and of bytes in file names that are no UTF-8.
_ERRORS = "backslashreplace"
_WATCH = 'read -r _ || printf "%s\\n" "$1" >&2'


class _Console(Console):
    """A console as wide as the terminal that it writes to: rich asks the descriptors 0, 1 and 2 instead."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        if self._width is not None or "COLUMNS" in os.environ:
            return size
        try:
            return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        except (OSError, ValueError):  # no terminal
            return size

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def fits(self, text: str) -> str:
        """The text as it will be written, so that it can be measured before."""
        return text.encode(self.encoding, _ERRORS).decode(self.encoding)


# Results. A log has no width: there, lines are as long as tables like.
console = _Console(width=None if sys.stdout.isatty() else 130)
# The log, errors, and the line that is alive.
messages = _Console(stderr=True)


def use_utf8() -> None:
    """Be in Python's UTF-8 mode, for which this process is started again where its locale has another encoding, or none.

    File names and the defaults of libraries would otherwise depend on the locale, and with them what a run reads and writes. The
    terminal keeps its encoding, and gets an escape for what that cannot show.
    """
    if sys.getfilesystemencoding() != _UTF8:
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors=_ERRORS)


class Captured:
    """What others than this package print while a job runs; a context manager, of which a process has one.

    The file is deleted in the end, unless it is kept. A process that dies at once, as Ray's library lets it when its raylet is
    gone, leaves the file too: a shell that waits for its end says so.

    Raises:
        OSError: no file can be made.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="crispwrap-", suffix=".log")
        self._kept = False

    def __enter__(self) -> Self:
        for console_, stream, number in ((console, sys.stdout, 1), (messages, sys.stderr, 2)):
            stream.flush()
            console_.file = open(os.dup(number), "w", encoding=stream.encoding, errors=_ERRORS, buffering=1)
            os.dup2(self._descriptor, number)
            # What a library prints goes to the file now, and is not for the terminal to encode.
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=_UTF8, errors=_ERRORS, line_buffering=True)
        os.close(self._descriptor)
        os.environ.pop("PYTHONIOENCODING", None)  # the terminal's; of workers it would be that of their log files
        faulthandler.enable(messages.file)
        died = f"error: the job ended without a word; what Ray and other libraries printed is in {self.path}"
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", messages.fits(died)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages.file.fileno(),
            start_new_session=True,  # a signal for all of the job is not for it
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watcher.communicate(b"\n")
        if not self._kept:
            Path(self.path).unlink(missing_ok=True)

    def keep(self) -> str | None:
        """Where the file is, which stays; None where nothing was printed."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._kept = os.path.getsize(self.path) > 0
        return self.path if self._kept else None
