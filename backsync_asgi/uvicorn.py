"""uvicorn's WebSocket protocol with a short cut for frames that go to many; it knows nothing of SockJS and models.

`uvicorn app:app --ws backsync_asgi.uvicorn:WebSocketProtocol`. Everything works without it, through ASGI's `send`;
with it a broadcast costs each client little more than the system call: the frame is built once, and written as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.server import ServerProtocol

__all__ = ["CompressingWebSocketProtocol", "WebSocketProtocol"]

# The name in the scope's `extensions`: its value has `write_frame`, `frames_writable` and `on_frames_writable`.
EXTENSION = "backsync.frames"
UVICORN_MAX_SIZE = 16 * 1024 * 1024  # uvicorn's default for --ws-max-size
MAX_SIZE = 262_144  # bytes of one message as framed: twice what an upload may have, for the escapes


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-I/O protocol, plus prebuilt frames, a message limit of 256 KiB and no compression.

    `--ws-max-size` sets another limit than uvicorn's default of 16 MiB, which takes seconds to parse.
    Compression costs about 50 KiB for each connection; `CompressingWebSocketProtocol` has it.
    """

    compresses = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_frames_writable: Callable[[], None] | None = None
        self.frames_writable = True  # whether the peer keeps up: the transport's buffer is below its high-water mark
        max_size = self.config.ws_max_size
        extensions = []
        if self.compresses:
            settings = {"memLevel": 5}
            extensions.append(
                ServerPerMessageDeflateFactory(
                    server_max_window_bits=12, client_max_window_bits=12, compress_settings=settings
                )
            )
        self.conn = ServerProtocol(
            extensions=extensions,
            max_size=MAX_SIZE if max_size == UVICORN_MAX_SIZE else max_size,
            logger=logging.getLogger("uvicorn.error"),
        )

    def handle_connect(self, event: Any) -> None:
        """Offer the short cut to the application, unless frames must be compressed first."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None and not self.conn.extensions:
            scope["extensions"][EXTENSION] = self

    def write_frame(self, frame: bytes) -> bool:
        """Write whole RFC 6455 frames, unmasked, after the handshake.

        False: the peer does not keep up, or the socket is being closed; nothing is written.
        """
        if not self.frames_writable or self.close_sent or self.transport.is_closing():
            return False
        self.transport.write(frame)
        return True

    def on_frames_writable(self, callback: Callable[[], None]) -> None:
        """Call back each time that the peer has caught up."""
        self._on_frames_writable = callback

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        super().pause_writing()
        self.frames_writable = False

    def resume_writing(self) -> None:
        """The transport's buffer is low again."""
        super().resume_writing()
        self.frames_writable = True
        if self._on_frames_writable is not None:
            self._on_frames_writable()


class CompressingWebSocketProtocol(WebSocketProtocol):
    """The same with permessage-deflate for clients that offer it; they get no prebuilt frames."""

    compresses = True
