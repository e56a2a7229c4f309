"""Run a command: log to the terminal, turn errors into one line and an exit status, and name the logs when something failed."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

# loguru reads these when it is imported; datatrove reconfigures the logger from them when it is imported.
os.environ.setdefault("LOGURU_FORMAT", "<dim>{time:HH:mm:ss}</dim> {message}")
os.environ.setdefault("LOGURU_LEVEL", "INFO")

from loguru import logger

from pipeline.errors import ConfigError, CrispwrapError, RunError, replace_controls
from pipeline.terminal.output import CapturedOutput, log_console


def _escape_controls(record: Any) -> None:
    record["message"] = replace_controls(record["message"])


def _log_to_terminal() -> None:
    """Write log lines through the live progress line; otherwise each would leave a broken copy of it behind."""
    import datatrove.utils.logging  # noqa: F401  reconfigures the logger when it is imported, so import it first

    from pipeline.terminal.progress import write_log_line

    colorize = log_console.file.isatty() and "NO_COLOR" not in os.environ
    logger.configure(handlers=[{"sink": write_log_line, "colorize": colorize}], patcher=_escape_controls)


def run_guarded(
    work: Callable[[], None], interrupted: str = "interrupted: finished parts are kept; run the same command to resume"
) -> int:
    """Run `work` and return the exit status: 0 success, 2 a user's mistake, 1 a failure, 130 and 143 after SIGINT and SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
    try:
        captured = CapturedOutput()
    except OSError as error:
        print(f"error: cannot write temporary files ({error}); set TMPDIR to an existing, writable folder", file=sys.stderr)
        return ConfigError.exit_code
    with captured:
        _log_to_terminal()
        try:
            work()
        except CrispwrapError as error:
            _print_error(f"error: {replace_controls(str(error))}")
            if error.exit_code == RunError.exit_code:
                _print_error(_locate_logs(error, captured))
            return error.exit_code
        except KeyboardInterrupt:
            _print_error(interrupted)
            return 128 + signal.SIGINT
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            _print_error(interrupted)
            return 128 + signal.SIGTERM
        except Exception as error:
            logs = _locate_logs(error, captured)
            _print_error(traceback.format_exc().rstrip())
            _print_error(logs)
            _print_error("error: this is a bug in crispwrap, not in your input; please report it with the lines above")
            return 1
        return 0


def _print_error(lines: str) -> None:
    if lines:
        print(lines, file=log_console.file)


def _locate_logs(error: BaseException, captured: CapturedOutput) -> str:
    """One line with the locations of the logs of Ray and of other libraries; empty if there are none."""
    printed = captured.keep()
    # The engine adds notes to errors. They are removed here, so that a traceback does not repeat them.
    locations = [*vars(error).pop("__notes__", ()), *([f"output of libraries: {printed}"] if printed else ())]
    return f"logs: {'; '.join(locations)}" if locations else ""
