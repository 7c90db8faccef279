"""What Orbax and TensorStore raise and log when a file is damaged or cannot be written, made one line."""

import asyncio
import contextlib
import logging as python_logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from absl import logging


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
    """The errno in an OSError, or in the ValueError that TensorStore makes of one.

    >>> [os_error_code(error) for error in (OSError(28, "full"), ValueError("os_error_code='27'"), ValueError("no"))]
    [28, 27, None]
    """
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return getattr(error, "errno", None) or (int(code[1]) if code else None)


def cause(error: BaseException) -> str:
    """The system's own words if it is the system's error, else the error's type and first line."""
    code = os_error_code(error)
    return os.strerror(code) if code else f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


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
