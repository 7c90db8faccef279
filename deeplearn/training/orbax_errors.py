"""What Orbax and TensorStore raise and log when they cannot read or write, made one line."""

import asyncio
import contextlib
import errno
import logging as python_logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from absl import logging

from deeplearn import files

# TensorStore's words for a refusal of the system or the network; an error about content begins with another word.
_STATUSES = (
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"),
    *("ABORTED", "CANCELLED", "UNKNOWN", "INTERNAL"),
)
_CLIENTS = ("gcsfs", "aiohttp", "google", "requests", "urllib3")  # of buckets; their errors have no common base class
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def quieten() -> None:
    """Keep Orbax's threads from logging their tracebacks, several times; whoever waits for them says it in one line."""
    logging.get_absl_logger().addFilter(_not_from_an_orbax_thread)
    asyncio.set_event_loop_policy(_Policy())


@contextlib.contextmanager
def quiet_coroutines() -> Iterator[None]:
    """Keep what a failed restore leaves behind from printing tracebacks when it is collected."""
    hook, asyncio_log = sys.unraisablehook, python_logging.getLogger("asyncio")
    sys.unraisablehook, asyncio_log.disabled = (lambda unraisable: None), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook, asyncio_log.disabled = hook, False


def os_error_code(error: BaseException) -> int | None:
    """The errno of an OSError, or in TensorStore's message of one; also if another error was raised from it.

    >>> [os_error_code(error) for error in (OSError(28, "full"), ValueError("os_error_code='27'"), ValueError("no"))]
    [28, 27, None]
    """
    for each in _chain(error):
        code = re.search(r"os_error_code='(\d+)'", str(each))
        number = int(code[1]) if code else getattr(each, "errno", None)
        if isinstance(number, int) and number:
            return number
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether the system or the network refused, which says nothing about what a file holds.

    That something is missing is no refusal.

    >>> [is_refusal(error) for error in (OSError(5, "I/O"), OSError(2, "none"), ValueError("UNAVAILABLE: x"))]
    [True, False, True]
    """
    code = os_error_code(error)
    if code:
        return code not in _ABSENT
    return any(
        isinstance(each, OSError) and not isinstance(each, (FileNotFoundError, NotADirectoryError))
        or str(each).startswith(tuple(f"{status}: " for status in _STATUSES))
        or type(each).__module__.partition(".")[0] in _CLIENTS
        for each in _chain(error)
    )  # fmt: skip


def is_io(error: BaseException) -> bool:
    """Whether an error comes from reading or writing, and not from a fault in the program."""
    return isinstance(error, OSError) or os_error_code(error) is not None or is_refusal(error)


def cause(error: BaseException) -> str:
    """The system's own words if it is the system's error, else the error's type and first line."""
    code = os_error_code(error)
    return os.strerror(code) if code else files.cause(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or while handling."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _not_from_an_orbax_thread(record: python_logging.LogRecord) -> bool:
    return record.levelno < python_logging.ERROR or os.path.join("", "orbax", "") not in record.pathname


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets late news go: of a checkpoint's writes, those that fail after the first one, of which
    its saver tells, find it closed, or nobody who asks for them.
    """

    def call_soon_threadsafe(self, callback, *args, context=None):
        if not self.is_closed():
            return super().call_soon_threadsafe(callback, *args, context=context)

    def call_exception_handler(self, context):
        if "never retrieved" not in context["message"]:
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop
