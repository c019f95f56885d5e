"""Log records of every process, one line each on stderr with the time to the microsecond."""

import logging
import time


class _Formatter(logging.Formatter):
    def formatTime(self, record, datefmt=None):
        seconds = time.localtime(record.created)
        return time.strftime("%Y/%m/%d %H:%M:%S", seconds) + f".{int(record.created % 1 * 1e6):06}"


def setup(options, least: int = logging.WARNING) -> None:
    """Send what this process logs to its stderr: from ``least`` on, more with -v, all with --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s go-cache-plugin: %(message)s"))
    logger = logging.getLogger(__package__)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if options.debug else logging.INFO if options.verbose else least)
    logging.raiseExceptions = False  # a reader of stderr that went away is no trouble of ours
