"""The chat, alone: `uvicorn examples.chat:app`; the program itself is `server.py`."""

from examples.chat.server import app as app
from examples.chat.server import sync as sync
