"""uvicorn's WebSocket protocol with a short cut to and from the application; it knows nothing of SockJS and models.

`uvicorn app:app --ws backsync_asgi.uvicorn:WebSocketProtocol`. Everything works without it, through ASGI's `send` and
`receive`. With it a broadcast costs each client little more than the system call, since the frame is built once and
written as it is; a message is handed over as it comes; and an idle connection takes less memory.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # where it was built without a compiler
    from websockets.utils import apply_mask

from .sockjs.receivers import unsent

__all__ = ["CompressingWebSocketProtocol", "WebSocketProtocol"]

OLDEST = (0, 53)  # of uvicorn: before, its protocol class was another one inside

if tuple(map(int, re.findall(r"\d+", uvicorn.__version__)[:2])) < OLDEST:
    raise ImportError(
        f"backsync_asgi.uvicorn got uvicorn {uvicorn.__version__}, expected {OLDEST[0]}.{OLDEST[1]} or later: "
        "pip install --upgrade uvicorn. An older one serves the application by its own protocols: --ws auto."
    )

# The name in the scope's `extensions`: its value is the protocol, with what follows under "The short cut".
EXTENSION = "backsync.frames"
UVICORN_MAX_SIZE = 16 * 1024 * 1024  # uvicorn's default for --ws-max-size
MAX_SIZE = 262_144  # bytes of one message as framed: twice what an upload may have, for the escapes
# What one client may have taken of what it sent, before others have their turn: frames, some milliseconds of work, and
# bytes. The frame that reaches the latter is still taken whole.
FRAMES_AT_ONCE, MUCH = 128, 65_536
# Seconds until the next turn of a client whose frames were no messages (pings, pongs, fragments): they cost it nothing.
REST = 0.01
MAX_PARTS = 1_024  # fragments of one message; each costs far more than its bytes
SLOW = 16_384  # bytes; where less than that stands before a ping, its answer comes in time over the slowest line
MESSAGE_DEADLINE = 30.0  # seconds in which a message that has begun must be whole
# They write to their socket what they are given, and nothing else.
PLAIN_TRANSPORTS = frozenset(
    {"asyncio.selector_events._SelectorSocketTransport", "uvloop.loop.TCPTransport", "uvloop.loop.UnixTransport"}
)
END_OF_HEAD = b"\r\n\r\n"
# In the two bytes at the head of a frame (RFC 6455, 5.2).
FINAL, OPCODE, TEXT, CLOSE, CONTROL = 0x80, 0x0F, 0x1, 0x8, 0x8
MASKED, LENGTH, TWO_BYTES_MORE, EIGHT_BYTES_MORE = 0x80, 0x7F, 126, 127


class Gate:
    """What uvicorn uses of an asyncio.Event, in a tenth of its memory."""

    __slots__ = ("_is_open", "_waiting")

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        self._is_open = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def clear(self) -> None:
        self._is_open = False

    def is_set(self) -> bool:
        return self._is_open

    async def wait(self) -> None:
        while not self._is_open:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future


class Inbox:
    """What uvicorn uses of an asyncio.Queue, in a tenth of its memory."""

    __slots__ = ("_events", "_gate")

    def __init__(self) -> None:
        self._events: list[Mapping[str, Any]] = []
        self._gate = Gate()

    def put_nowait(self, event: Mapping[str, Any]) -> None:
        self._events.append(event)
        self._gate.set()

    def empty(self) -> bool:
        return not self._events

    async def get(self) -> Mapping[str, Any]:
        while not self._events:
            self._gate.clear()
            await self._gate.wait()
        return self._events.pop(0)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-I/O protocol, plus the short cut, a message limit of 256 KiB and no compression.

    `--ws-max-size` sets another limit than uvicorn's default of 16 MiB, which takes seconds to parse.
    Compression costs about 50 KiB for each connection; `CompressingWebSocketProtocol` has it.
    """

    compresses = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_writability: Callable[[], None] | None = None
        self._on_message: Callable[[str | bytes], bool] | None = None
        self._lacking: int | None = None  # bytes until the next frame begins; None where that is not known
        self._parts = 0  # fragments that have come of a message that is not whole
        self._head = b""  # of a frame, where it has not come whole
        self._held = b""  # what came and waits for the next turn
        self._turn: asyncio.Handle | None = None
        self._message_timer: asyncio.TimerHandle | None = None
        self._unsent: tuple[int, int] | None = None  # as the last ping was sent, or looked after
        self._pong: bytes | None = None  # waits until the peer reads again
        self._unheard = 0  # messages that go by `receive` and of which `heard` has not told yet
        self.frames_writable = True
        self.frames_fd: int | None = None
        self._stopped = False
        self._abort_timer: asyncio.TimerHandle | None = None
        self.queue = Inbox()  # type: ignore[assignment]
        self.writable = Gate()  # type: ignore[assignment]
        self.writable.set()
        max_size = self.config.ws_max_size
        self._max_size = MAX_SIZE if max_size == UVICORN_MAX_SIZE else max_size
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
            max_size=self._max_size,
            logger=logging.getLogger("uvicorn.error"),
        )

    # The short cut

    @property
    def write_frame(self) -> Callable[[bytes], None]:
        """What writes whole RFC 6455 frames, unmasked, after the handshake; to be called only while `frames_writable`.
        It is the transport's, to spare a call. Where `frames_fd` is not None, it is the number of a socket that may be
        written to in its place, as long as nothing else is called in between; what it does not take goes the other way.
        """
        return self.transport.write

    def on_writability(self, callback: Callable[[], None]) -> None:
        """Call back each time that `frames_writable` has changed: whether the peer is there and keeps up, so that the
        transport's buffer is below its high-water mark, and no close frame has been sent."""
        self._on_writability = callback

    def on_message(self, callback: Callable[[str | bytes], bool]) -> None:
        """Hand messages over as they come. One for which it returns False goes by `receive`, and so do those behind it
        until all of them are `heard`."""
        self._on_message = callback

    def heard(self) -> None:
        """A message from `receive` is dealt with. To be called for each: middleware may hold one back for a while, and
        what comes meanwhile must not overtake it."""
        self._unheard -= self._unheard > 0  # middleware may add messages of its own

    # What uvicorn calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The HTTP protocol hands its connection over."""
        if transport.get_extra_info("sslcontext") is not None:
            transport = cast(asyncio.Transport, ClosedOnce(transport))
        before: Any = transport.get_protocol()
        super().connection_made(transport)
        cycle = getattr(before, "cycle", None)
        if cycle is not None and not cycle.response_complete:
            # The bytes of that answer and of the WebSocket would be mixed.
            self.logger.info("%r - WebSocket refused: an earlier request is still answered", self.client)
            self._stopped = True
            self.transport.abort()

    def handle_connect(self, event: Any) -> None:
        """Offer the short cut to the application, unless frames must be compressed first."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None and not self.conn.extensions:
            scope["extensions"][EXTENSION] = self
            # uvloop then writes at once what the socket takes, in place of a list of those who have something to write:
            # a broadcast costs 5 to 8 % less. And nothing is kept for a peer that does not read, which has a position.
            self.frames_fd = fd_of(self.transport)
            # A TLS transport pauses when as much as the limit waits, a plain one when more does: the limit of 0 would
            # pause the former for ever; 1 suits both.
            self.transport.set_write_buffer_limits(high=1 if self.frames_fd is None else 0)
            if self.transport.get_write_buffer_size():
                # An answer to a request before this one. Of the pause the HTTP protocol was told; of its end we are.
                self.pause_writing()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if not self.handshake_initiated:
            if self._stopped:
                return
            head = data.find(END_OF_HEAD) + len(END_OF_HEAD)
            if head < len(END_OF_HEAD):
                super().data_received(data)
                return
            super().data_received(data[:head])
            data = data[head:]
            self._lacking = 0
        if self._lacking is None:  # the handshake did not come in one piece: nobody knows where a frame begins
            super().data_received(data)
            return
        if self._held:
            self._held += data
            return
        taken = 0
        if self._lacking == 0 and not self._parts and not self._head:
            taken = self._take_text(data, 0)
            if taken == len(data) < MUCH:  # one whole message, as nearly always
                return
        self._take(data, taken)

    def _take(self, data: bytes, at: int = 0) -> None:
        """Take what has come, up to a bound; then others have their turn."""
        size, left, cheap = len(data), FRAMES_AT_ONCE - (at > 0), 0
        closing = self.transport.is_closing
        while at < size and left and at < MUCH and not closing():
            left -= 1
            end = at if self._lacking or self._parts or self._head else self._take_text(data, at)
            if end == at:
                if not self._lacking:
                    cheap += not self._head and (data[at] & FINAL == 0 or data[at] & CONTROL > 0)
                    if not self._begin_frame(data, at):
                        return
                end = min(size, at + (self._lacking or 0)) if not self._head else size
                self._lacking = max(0, (self._lacking or 0) - (end - at))
                super().data_received(data[at:end])
            at = end
        if closing():
            return
        self._held = data[at:]
        if (self._held or size >= MUCH) and not self._stopped and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
        if self._held or self.read_paused:
            self._read_on_soon(REST if cheap > FRAMES_AT_ONCE // 2 else 0.0)
        self._watch_message()

    def _take_text(self, data: bytes, at: int) -> int:
        """Take a whole text message that begins there, as nearly all come, past the parser: it makes twenty calls for
        each frame, and takes four times as long. Returns where it ends; `at` if it is for the parser."""
        if len(data) - at < 6 or data[at] != FINAL | TEXT or self.conn.extensions:
            return at
        length, start = data[at + 1] - MASKED, at + 6
        if length == TWO_BYTES_MORE:
            length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 8
        elif not 0 <= length < TWO_BYTES_MORE:
            return at
        end = start + length
        if end > len(data) or length > self._max_size:
            return at
        self.curr_msg_data_type = "text"
        self.frames = [apply_mask(data[start:end], data[start - 4 : start])]
        self.send_receive_event_to_app()
        return end

    def _begin_frame(self, data: bytes, at: int) -> bool:
        """Note how long the frame is that begins there, if its head is whole. Returns False if it is refused."""
        known = len(self._head)
        head = self._head + data[at : at + 14]
        second = head[1] if len(head) > 1 else EIGHT_BYTES_MORE
        more = {TWO_BYTES_MORE: 2, EIGHT_BYTES_MORE: 8}.get(second & LENGTH, 0)
        if len(head) < 2 + more:
            self._head = head
            return True
        length = int.from_bytes(head[2 : 2 + more], "big") if more else second & LENGTH
        self._head = b""
        self._lacking = 2 + more + (4 if second & MASKED else 0) + length - known
        if head[0] & CONTROL == 0:
            self._parts = 0 if head[0] & FINAL else self._parts + 1
            if self._parts > max(MAX_PARTS, self._max_size >> 8):
                self._fail(1009, "Too many fragments")
                return False
        return True

    def _fail(self, code: int, reason: str) -> None:
        """End the connection: the peer asks for too much."""
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _watch_message(self) -> None:
        """See to it that what has begun becomes whole in time."""
        begun = not self._stopped and bool(self._lacking or self._parts or self._head)
        if begun and self._message_timer is None:
            self._message_timer = self.loop.call_later(MESSAGE_DEADLINE, self._message_overdue)
        elif not begun and self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None

    def _message_overdue(self) -> None:
        self._message_timer = None
        if self._held or self.read_paused:  # it may have come, and waits for the application
            self._watch_message()
        elif not self.transport.is_closing():
            self._fail(1008, f"A message must come within {MESSAGE_DEADLINE:g} seconds")

    def _read_on_soon(self, delay: float) -> None:
        if self._turn is None and self.queue.empty():  # else `receive` does it
            self._turn = self.loop.call_later(delay, self._read_on) if delay else self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._turn = None
        if not self.queue.empty() or self.transport.is_closing():
            return
        data, self._held = self._held, b""
        if data:
            self._take(data)
        if not self._held and self.read_paused and self.queue.empty() and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """The next event for the application."""
        event = await self.queue.get()
        if self.read_paused:
            self._read_on_soon(0.0)
        return event

    def handle_ping(self) -> None:
        """Answer pings; of those that come while the peer does not read the last one, so that no answers pile up."""
        output = self.conn.data_to_send()
        if self.writable.is_set() or self.conn.state is not OPEN:
            self.transport.write(b"".join(output))
        elif output:
            self._pong = output[-1]

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        frames, self.frames = self.frames, []
        if self._stopped:
            return
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        try:
            message = data.decode() if self.curr_msg_data_type == "text" else bytes(data)
        except UnicodeDecodeError:  # uvicorn would log a traceback for whatever anybody sends
            if self.conn.close_rcvd is not None:  # in one go with it
                self.handle_close(None)
                return
            if self.conn.state is OPEN:
                self.conn.send_close(1007)
            self.handle_parser_exception()
            return
        if self._on_message is None or self._unheard or not self._on_message(message):
            self._unheard += 1
            self.frames = frames
            super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """An event of the application's."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            self.request = self.response = None  # type: ignore[assignment]  # kilobytes that nobody needs any more
        elif message["type"] == "websocket.close":
            self._stop_writing()

    def handle_close(self, event: Any) -> None:
        """The peer's close frame has come, and ours is sent."""
        super().handle_close(event)
        self._stop_writing()

    def handle_parser_exception(self) -> None:
        """The peer does not speak the protocol; our close frame is sent."""
        if self.conn.close_sent is None:  # it has not even waited for the handshake; uvicorn's own would fail
            self.transport.abort()
            return
        super().handle_parser_exception()
        self._stop_writing()

    def eof_received(self) -> None:
        """The peer sends nothing more; the transport closes."""
        super().eof_received()
        self._stop_writing()

    def send_keepalive_ping(self) -> None:
        """It is time for a ping."""
        super().send_keepalive_ping()
        self._unsent = unsent(self.transport)

    def keepalive_timeout(self) -> None:
        """The peer has not answered a ping; our close frame is sent, unless it stands behind what is not read."""
        before, self._unsent = self._unsent, unsent(self.transport)
        if self._unsent is not None and self._unsent != before and sum(self._unsent) > SLOW:
            # The line is slow, the peer takes what stands before the ping.
            self.pong_timer = self.loop.call_later(self.ping_timeout or 0.0, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._stop_writing()
        self.transport.abort()

    def shutdown(self) -> None:
        """The server ends; our close frame is sent."""
        if self._stopped and not self.close_sent:
            self.stop_keepalive()
            return  # the transport closes already; uvicorn's own would fail, and with it the end of all the others
        super().shutdown()
        self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed: it must not be written to."""
        # First of all: once this returns, the socket is closed, and its number may be that of the next one.
        self.frames_fd = None
        self._set_writable(False)
        super().connection_lost(exc)
        handles: tuple[asyncio.Handle | None, ...] = (self._abort_timer, self._message_timer, self._turn)
        for handle in handles:
            if handle is not None:
                handle.cancel()
        self._held = b""

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        super().pause_writing()
        self._set_writable(False)

    def resume_writing(self) -> None:
        """The transport's buffer is low again."""
        super().resume_writing()
        # Not now: asyncio's transport, which is in the middle of its own work, would close twice, with a traceback, if
        # something is written here and the peer has reset the connection.
        self.loop.call_soon(self._write_on)

    def _write_on(self) -> None:
        if self._stopped or not self.writable.is_set() or self.transport.is_closing():
            return
        pong, self._pong = self._pong, None
        if pong is not None:
            self.transport.write(pong)
        self._set_writable(self.writable.is_set())

    def _stop_writing(self) -> None:
        """Nothing may follow a close frame, and a peer that does not read what stands before it is not waited for."""
        self._stopped = True
        self._set_writable(False)
        if self._abort_timer is None and not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _set_writable(self, writable: bool) -> None:
        self.frames_writable = writable
        if self._on_writability is not None:
            self._on_writability()


class ClosedOnce:
    """A transport that passes on one `close` only: after a second one, asyncio's TLS transport cannot abort (seen
    in Python 3.11), and a peer that does not read keeps the connection for ever."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close it, unless it closes already."""
        if not self._transport.is_closing():
            self._transport.close()


def fd_of(transport: asyncio.Transport) -> int | None:
    """The number of the socket that a transport writes to as it is; None under TLS, and for every transport that is not
    known to do so: one that wraps another may name the other's socket."""
    kind = type(transport)
    socket = transport.get_extra_info("socket")
    if f"{kind.__module__}.{kind.__qualname__}" not in PLAIN_TRANSPORTS or socket is None:
        return None
    fd: int = socket.fileno()
    return None if fd < 0 else fd


class CompressingWebSocketProtocol(WebSocketProtocol):
    """The same with permessage-deflate for clients that offer it; they get no short cut."""

    compresses = True
