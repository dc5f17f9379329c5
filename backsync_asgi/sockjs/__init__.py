"""SockJS for ASGI: `SockJS(app)` wraps a WebSocket application; it imports nothing of Backsync outside this package."""

from .app import SockJS
from .server import Settings
from .session import Timing

__all__ = ["Settings", "SockJS", "Timing"]
