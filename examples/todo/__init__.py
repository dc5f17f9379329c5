"""The todo list, alone: `uvicorn examples.todo:app`; the program itself is `server.py`."""

from examples.todo.server import app as app
from examples.todo.server import sync as sync
