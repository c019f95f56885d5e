"""The log of every process, on stderr: the local time to the microsecond, the name, the message.

Example: ``2024/05/31 23:59:58.123456 go-cache-plugin: listening on 127.0.0.1:5151``
"""

import logging
import time

from .console import PROGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .options import Options


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: "str | None" = None) -> str:
        seconds = time.localtime(record.created)
        return time.strftime("%Y/%m/%d %H:%M:%S", seconds) + f".{int(record.created % 1 * 1e6):06}"


def setup(options: "Options", level: int = logging.WARNING) -> None:
    """Send the log of this process to its stderr.

    Records from ``level`` upwards are written; with -v those from INFO, with --debug all.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(f"%(asctime)s {PROGRAM}: %(message)s"))
    logger = logging.getLogger(__package__)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if options.debug else logging.INFO if options.verbose else level)
    logging.raiseExceptions = False  # a closed stderr must not end the program
