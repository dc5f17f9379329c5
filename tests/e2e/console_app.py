"""The console's page and handler with a logger that is told over HTTP what to say; knows nothing of who reads.

`POST /say` with a list of `{"message", "level", "thread"?, "error"?, "times"?}`: the lines are logged in that order,
from a thread of the given name or, without one, in the event loop. A `#` in the message is the number of the time.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from examples.console.handler import BacksyncHandler
from examples.console.server import app as console
from examples.console.server import lines, sync

logger = logging.getLogger("shop")
logger.propagate = False
logger.setLevel(logging.DEBUG)
logger.addHandler(BacksyncHandler(lines))


def log(line: dict[str, Any]) -> None:
    level = logging.getLevelNamesMapping()[line["level"]]
    for number in range(1, line.get("times", 1) + 1):
        text = line["message"].replace("#", str(number))
        try:
            if "error" in line:
                raise LookupError(line["error"])
            logger.log(level, "%s", text)
        except LookupError:
            logger.log(level, "%s", text, exc_info=True)


async def say(request: Request) -> Response:
    for line in await request.json():
        if "thread" in line:
            thread = threading.Thread(target=log, args=[line], name=line["thread"])
            thread.start()
            thread.join()
        else:
            log(line)
    return Response()


# Without the example's own lifespan, which starts its job.
app = Starlette(routes=[Route("/say", say, methods=["POST"]), Mount("/", app=console)], lifespan=sync.lifespan)
