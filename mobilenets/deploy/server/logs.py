"""Log lines as JSON, one object a line, on stderr. No torch."""

from __future__ import annotations

import json
import logging
import time
from typing import Any


class Json(logging.Formatter):
    """A record as JSON: time (UTC), level, what happened, and the fields that it was given besides."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def config(quiet: bool) -> dict[str, Any]:
    """For `logging.config`: ours and uvicorn's. `quiet`: only what needs somebody to look at it."""
    level = "WARNING" if quiet else "INFO"
    own = {"handlers": ["stderr"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.Json"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"mobilenets": own, "uvicorn": own, "uvicorn.error": {"level": level}},
    }
