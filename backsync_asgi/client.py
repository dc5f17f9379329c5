"""The client's end of a conversation: requests, replies and live copies of channels; pure, it knows no transport.

What a client must do by the protocol is all here; whoever carries the texts (`testing` does, in process) is told what
to send and hands over what has come. A server that breaks a promise of the protocol is told so by `PromiseBroken`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import BacksyncError, Reject

Id = str | int
Record = dict[str, Any]
Channel = tuple[str, str]  # a model's name, and the key as JSON text; empty for a model without key


class PromiseBroken(BacksyncError, AssertionError):
    """The server has done what the protocol says it never does."""


class Event(NamedTuple):
    """What came for a view. method: `upsert`, `delete`, `snapshot`, or a transient event's name, then without seq."""

    method: str
    data: Any
    seq: int | None


class View(Mapping[Id, Record]):
    """A copy of one channel's records, by id, kept equal to the server's; compare it with a dict.

    Ids are looked up as browsers do: 1 and "1" name the same record.

    epoch, seq: the position, which `reconnect` resumes from. key: of a keyed model's channel, such as
    `{"room": "lobby"}`. mode: what the last subscription was answered with, "snapshot" or "resume".
    events: all that has come for it, in order. error: the refusal that has ended the subscription, or None.
    """

    def __init__(self, model: str, query: Mapping[str, Any]) -> None:
        self.model = model
        self.query = dict(query)
        self.epoch: str | None = None
        self.seq = 0
        self.key: Mapping[str, Any] | None = None
        self.mode: str | None = None
        self.events: list[Event] = []
        self.error: Reject | None = None
        self._records: dict[str, Record] = {}

    def __getitem__(self, id: Id) -> Record:
        return self._records[str(id)]

    def __iter__(self) -> Iterator[Id]:
        return iter([record["id"] for record in self._records.values()])

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<View {self.model} {self.query} at {self.seq}: {dict(self)}>"

    @property
    def since(self) -> dict[str, Any] | None:
        """Where to resume; None before the first answer."""
        return None if self.epoch is None else {"epoch": self.epoch, "seq": self.seq}

    def forget_position(self) -> None:
        """The copy is somebody else's, or worth nothing: the next subscription starts with a snapshot."""
        self.epoch = None

    def answered(self, answer: Mapping[str, Any], since: Mapping[str, Any] | None) -> None:
        """Take the answer to a subscription that was made from `since`."""
        self.mode = answer["mode"]
        self.key = answer.get("key")
        self.error = None
        if self.mode == "resume" and since is not None:
            if (answer["epoch"], answer["seq"]) != (since["epoch"], since["seq"]):
                raise PromiseBroken(f"{self!r} asked to resume {since} and was answered {dict(answer)}.")
            self.seq = since["seq"]
            return
        self._replace(answer)

    def refused(self, error: Reject) -> None:
        """The subscription has failed: nothing more will come, and what is here is not this client's any more."""
        self.error = error
        self.forget_position()
        self._records.clear()

    def take(self, method: str, data: Any, seq: int | None) -> None:
        """Apply a message of the channel."""
        if method == "snapshot" and seq is None:
            self._replace(data)
            self.events.append(Event(method, data["records"], data["seq"]))
            return
        self.events.append(Event(method, data, seq))
        if seq is None:
            return
        if seq <= self.seq:
            raise PromiseBroken(f"{self!r} got the position {seq} for {method} {data}: positions grow.")
        self.seq = seq
        if method == "delete":
            self._records.pop(str(data["id"]), None)
        elif method == "upsert":  # whatever its version: that of a record which was deleted in between begins anew
            self._records[str(data["id"])] = data

    def _replace(self, snapshot: Mapping[str, Any]) -> None:
        self.epoch, self.seq = snapshot["epoch"], snapshot["seq"]
        self._records = {str(record["id"]): record for record in snapshot.get("records", ())}


class Request:
    """One request: what is sent, and what has come of it.

    view: the view that a subscription is for. own: asked by the conversation itself, as it begins anew.
    answered: `data` is the reply's, `error` its refusal.
    """

    __slots__ = ("answered", "data", "error", "event", "id", "message", "own", "since", "text", "view")

    def __init__(self, id: Id, event: str, message: Mapping[str, Any], view: View | None, own: bool) -> None:
        self.id = id
        self.event = event
        self.message = message
        self.text = json.dumps(message)
        self.view = view
        self.own = own
        self.since = message.get("since")
        self.answered = False
        self.data: Any = None
        self.error: Reject | None = None


class Conversation:
    """What one client has asked, and the views that it has, over all its connections.

    name: the client's, by which the server knows it again. Without one, no `$:hello` is said.
    """

    def __init__(self, name: str | None, token: str | None) -> None:
        self.name = name
        self.token = token
        self.views: dict[Channel, View] = {}
        self.waiting: dict[Id, Request] = {}  # requests without a reply
        self._number = 0
        self._due: dict[Id, tuple[Request, int]] = {}  # how many replies may come on this connection

    def request(self, event: str, data: Any = None, view: View | None = None, **more: Any) -> Request:
        """Make a request. Send its text, and tell `sent` of it."""
        return self._request(event, data, view, False, more)

    def _request(self, event: str, data: Any, view: View | None, own: bool, more: Mapping[str, Any]) -> Request:
        self._number += 1
        message = {"id": self._number, "event": event, **({} if data is None else {"data": data}), **more}
        request = Request(self._number, event, message, view, own)
        self.waiting[request.id] = request
        return request

    def sent(self, request: Request) -> None:
        """A request was sent, perhaps not for the first time: a reply to it may come."""
        _, due = self._due.get(request.id, (request, 0))
        self._due[request.id] = (request, due + 1)

    def begin(self) -> list[Request]:
        """A new connection: what to send first. A greeting, the views from where they were, what has no reply."""
        self._due.clear()
        left = [request for request in self.waiting.values() if not request.own]
        self.waiting = {}
        if self.name is not None:
            greeting = {"version": 1, "client": self.name} | ({} if self.token is None else {"token": self.token})
            self._request("$:hello", greeting, None, True, {})
        for view in self.views.values():
            since = view.since
            self._request(f"{view.model}:subscribe", view.query, view, True, {} if since is None else {"since": since})
        self.waiting |= {request.id: request for request in left}
        return list(self.waiting.values())

    def receive(self, text: str) -> tuple[Request | None, Mapping[str, Any]]:
        """Take a message. Returns the request that it answers, if it is a reply, and the message.

        Raises PromiseBroken.
        """
        message = json.loads(text)
        if "id" in message:
            return self._reply(message), message
        name, _, method = message["event"].partition(":")
        if name != "$":
            self._take(name, method, message)
        return None, message

    def _take(self, name: str, method: str, message: Mapping[str, Any]) -> None:
        view = self.views.get((name, channel_key(message.get("key"))))
        if view is None:
            raise PromiseBroken(f"This came for a channel to which the client has not subscribed: {message}")
        view.take(method, message["data"], message.get("seq"))

    def _reply(self, message: Mapping[str, Any]) -> Request:
        request, due = self._due.get(message["id"], (None, 0))
        if request is None or not due:
            raise PromiseBroken(f"This answers no request of the client, or one more often than it was sent: {message}")
        self._due[request.id] = (request, due - 1)
        error = message.get("error")
        refusal = None if error is None else Reject(error["code"], error["message"], error.get("details"))
        if request.view is not None:
            self._subscribed(request, request.view, message["data"], refusal)
        if not request.answered:
            request.answered = True
            request.data, request.error = message["data"], refusal
        self.waiting.pop(request.id, None)
        return request

    def _subscribed(self, request: Request, view: View, answer: Any, refusal: Reject | None) -> None:
        if request.event.endswith(":unsubscribe"):
            if refusal is None:
                self.views = {channel: other for channel, other in self.views.items() if other is not view}
            return
        if refusal is not None:
            view.refused(refusal)
            self.views = {channel: other for channel, other in self.views.items() if other is not view}
            return
        channel = (view.model, channel_key(answer.get("key")))
        known = self.views.setdefault(channel, view)
        if known is not view:  # there is one subscription to a channel, so there is one view
            known.query = view.query
            request.view = known
        known.answered(answer, request.since)


def channel_key(key: Mapping[str, Any] | None) -> str:
    """A channel's key as text that compares."""
    return "" if key is None else json.dumps(key, sort_keys=True)
