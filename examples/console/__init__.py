"""The console, alone: `uvicorn examples.console:app`; the program itself is `server.py`."""

from examples.console.handler import BacksyncHandler as BacksyncHandler
from examples.console.server import app as app
from examples.console.server import sync as sync
