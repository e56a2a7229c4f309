"""The terminal of a job: results go to standard output, log lines and errors to standard error, in any encoding.

Ray, vLLM and native code write directly to the file descriptors 1 and 2, which Python's logging cannot filter. While a job runs,
these descriptors lead to a file (`CapturedOutput`), and only the consoles here write to the terminal.
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
# For characters that a terminal cannot show, and bytes in file names that are not UTF-8.
_ENCODING_ERRORS = "backslashreplace"
_WATCHER_SCRIPT = 'read -r _ || printf "%s\\n" "$1" >&2'


class _Console(Console):
    """A console as wide as the terminal that it writes to; rich uses the width of descriptor 0, 1 or 2 instead."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        size = super().size
        if self._width is not None or "COLUMNS" in os.environ:
            return size
        try:
            return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        except (OSError, ValueError):  # not a terminal
            return size

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def as_encoded(self, text: str) -> str:
        """The text as it will be written, with escapes, so that its width can be measured."""
        return text.encode(self.encoding, _ENCODING_ERRORS).decode(self.encoding)


# Results. A log file has no width, so tables may use 130 columns there.
console = _Console(width=None if sys.stdout.isatty() else 130)
# Log lines, errors, and the live progress line.
log_console = _Console(stderr=True)


def use_utf8() -> None:
    """Restart this process in Python's UTF-8 mode if its locale has another encoding.

    Otherwise file names and the defaults of libraries would depend on the locale, and with them what a run reads and writes. The
    terminal keeps its encoding; characters that it cannot show are escaped.
    """
    if sys.getfilesystemencoding() != _UTF8:
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors=_ENCODING_ERRORS)


class CapturedOutput:
    """Captures what libraries print while a job runs, in a file; a context manager, of which a process has at most one.

    The file is deleted at the end unless it is kept. If the process dies at once, as Ray's library does when its raylet is gone,
    the file remains: a shell that waits for the end of the process then prints where it is.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="crispwrap-", suffix=".log")
        self._is_kept = False

    def __enter__(self) -> Self:
        for console_, stream, number in ((console, sys.stdout, 1), (log_console, sys.stderr, 2)):
            stream.flush()
            console_.file = open(os.dup(number), "w", encoding=stream.encoding, errors=_ENCODING_ERRORS, buffering=1)
            os.dup2(self._descriptor, number)
            # What a library prints now goes to the file, so the terminal's encoding no longer matters.
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=_UTF8, errors=_ENCODING_ERRORS, line_buffering=True)
        os.close(self._descriptor)
        os.environ.pop("PYTHONIOENCODING", None)  # the terminal's encoding must not apply to the log files of workers
        faulthandler.enable(log_console.file)
        died = f"error: the job died without an error message; the output of Ray and other libraries is in {self.path}"
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER_SCRIPT, "sh", log_console.as_encoded(died)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log_console.file.fileno(),
            start_new_session=True,  # a signal to the job's process group must not reach it
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watcher.communicate(b"\n")
        if not self._is_kept:
            Path(self.path).unlink(missing_ok=True)

    def keep(self) -> str | None:
        """Keep the file and return its path; None if nothing was printed."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._is_kept = os.path.getsize(self.path) > 0
        return self.path if self._is_kept else None
