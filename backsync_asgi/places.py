"""Places: in which channel of a keyed model each record was last, so that who has it there is told when it moves.

A key is the values of the model's key fields; a place is a key, encoded, and how messages show it. A model without key
fields has one channel, and nothing of this.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from . import messages
from .errors import Reject
from .hub import Hub, Key, Topic
from .messages import MAX_KEY, MAX_SAFE_INTEGER, is_id
from .sockjs.frames import loads
from .stores.base import Id

KEYS = 10_000  # encoded keys that are remembered, per model
PLACES = 100_000  # records of a keyed model whose channel is remembered, per model

Place = tuple[Key, str]  # the key, each value as JSON text, and the whole as a JSON object


class Places:
    """The places of one model's records. names: of its key fields."""

    def __init__(self, model: str, names: tuple[str, ...], hub: Hub) -> None:
        self.names = names
        self._model = model
        self._hub = hub
        self._last: OrderedDict[str, Place] = OrderedDict()  # of each record, by its id as text
        self._encoded: dict[object, Place] = {}  # by values; the usual key, one text, by itself
        self._forgotten: set[Key] = set()  # the channels of records whose place was forgotten
        self._prune_at = KEYS
        self._learned: set[str] = set()  # the queries whose records' places are known
        self._reading = 0  # reads that are under way

    # Keys

    def of(self, fields: Mapping[str, Any]) -> Place:
        """The place of a record or query.

        Raises Reject("invalid") where a key field is missing or is no text, number or boolean.
        """
        names = self.names
        if not names:
            return (), ""
        key: Any = fields.get(names[0])
        if type(key) is not str or len(names) > 1:
            values = [fields.get(name) for name in names]
            key = *values, *map(type, values)  # True is 1 to a dict, and not to a browser
        try:
            known = self._encoded.get(key)
        except TypeError:  # a value that is no key at all
            known = None
        if known is None:
            known = self._encode({name: fields.get(name) for name in names})
            if len(self._encoded) >= KEYS:
                self._encoded.clear()
            self._encoded[key] = known
        return known

    def _encode(self, key: Mapping[str, Any]) -> Place:
        expected = f"expected a text of at most {MAX_KEY} characters, an integer (as text above 2^53) or a boolean"
        faults = [
            {
                "field": name,
                "message": f"{'missing' if value is None else f'got {messages.shorten(value)}'}, {expected}",
            }
            for name, value in key.items()
            if not (isinstance(value, str) and len(value) <= MAX_KEY)
            and not (isinstance(value, int) and abs(value) <= MAX_SAFE_INTEGER)
        ]
        if faults:
            names, told = ", ".join(key), "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
            raise Reject(
                "invalid", f"{self._model} is keyed: its records and subscriptions need {names}. {told}.", faults
            )
        return tuple(messages.encode(value) for value in key.values()), messages.encode(key)

    def find(self, record: Mapping[str, Any]) -> Place | None:
        """The place of a record or query; None if it has none, as a row from elsewhere that lacks its key."""
        with contextlib.suppress(Reject):
            return self.of(record)
        return None

    def of_key(self, key: Mapping[str, Any]) -> Place:
        """The place that `publish` was given by its key.

        Raises ValueError for a key that is not the model's, TypeError for what is no mapping.
        """
        expected = f"key={{{', '.join(f'{messages.encode(name)}: …' for name in self.names)}}}"
        if not self.names:
            raise ValueError(f"{self._model}.publish got key={messages.shorten(key)}, but the model has no key.")
        if not isinstance(key, Mapping):
            raise TypeError(f"{self._model}.publish got key={messages.shorten(key)}, expected {expected}.")
        if set(key) != set(self.names):
            raise ValueError(f"{self._model}.publish got key={messages.shorten(dict(key))}, expected {expected}.")
        try:
            return self.of(key)
        except Reject as error:
            raise ValueError(f"{self._model}.publish got key={messages.shorten(dict(key))}: {error.message}") from None

    def check_patch(self, fields: Mapping[str, Any], unset: Sequence[str]) -> None:
        """Raises Reject("invalid") for a patch that would leave the record without its key, before it is stored."""
        changed = {name: fields.get(name) for name in self.names if name in fields or name in unset}
        if changed:
            self.of({**dict.fromkeys(self.names, ""), **changed, **dict.fromkeys(set(unset) & set(changed))})

    # Where records are

    def knows(self, id: Id) -> bool:
        """Whether it is known where a record was last."""
        return not self.names or str(id) in self._last

    def note(self, id: Id, place: Place) -> None:
        """The record is there now."""
        name = str(id)
        self._last[name] = place
        self._last.move_to_end(name)
        if len(self._last) > PLACES:
            _, (key, _) = self._last.popitem(last=False)
            self._forgotten.add(key)
            if len(self._forgotten) > self._prune_at:
                self._prune_at = 2 * len(self._topics_forgotten()) + KEYS

    def forget(self, kept: Set[str]) -> None:
        """Records have moved unheard, and everybody reads anew: where they are is learned by that.

        kept: ids, as text, of those that are being written: who does has looked where they are.
        """
        self._last = OrderedDict((name, self._last[name]) for name in self._last.keys() & kept)
        self._learned.clear()
        self._forgotten.clear()

    def forget_one(self, name: str) -> None:
        """The record of that id, as text, has moved unheard; who writes it next looks where it is."""
        self._last.pop(name, None)

    def learn(self, rows: Any) -> None:
        """Note where records are that somebody reads: whoever gets them is to be told when they move."""
        if not self.names:
            return
        for row in [rows] if isinstance(rows, Mapping) else rows:
            if isinstance(row, Mapping) and is_id(row.get("id")) and not self.knows(row["id"]):
                place = self.find(row)
                if place is not None:
                    self.note(row["id"], place)

    def learn_query(self, query: Mapping[str, Any], rows: Sequence[Any]) -> None:
        """The same for what was read for a query, records or their JSON texts: once for each, since what comes later is
        published."""
        wanted = messages.encode(query) if all(name in query for name in self.names) else None
        if wanted is None or wanted in self._learned:
            return
        if len(self._learned) >= KEYS:
            self._learned.clear()
        self._learned.add(wanted)
        self.learn([loads(row) if isinstance(row, str) else row for row in rows])

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Somebody reads: a record that is published meanwhile may be among what is read, wherever it was."""
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def move(self, id: Id, place: Place, is_known: bool) -> None:
        """The record comes to a place, and is deleted for those who have it elsewhere. is_known: the store was asked
        where it was before; else somebody may have it whose read is under way, or was too long ago."""
        if not self.names:
            return
        previous = self._last.get(str(id))
        if previous != place:
            for topic in self._topics_left(previous, is_known):
                if topic.key != place[0]:
                    topic.publish("delete", id, messages.encode({"id": id}))
        self.note(id, place)

    def _topics_left(self, previous: Place | None, is_known: bool) -> list[Topic]:
        if previous is not None:
            return [self._hub.topic(self._model, *previous)]
        if is_known:
            return []
        return self._hub.topics_of(self._model) if self._reading else self._topics_forgotten()

    def settle(self, record: Mapping[str, Any]) -> bool:
        """The record is in its own channel and nowhere else, whatever has been told. False: it has no channel."""
        place = self.find(record)
        if self.names:
            for topic in self._hub.topics_of(self._model):
                if place is None or topic.key != place[0]:
                    topic.publish("delete", record["id"], messages.encode({"id": record["id"]}))
            if place is not None:
                self.note(record["id"], place)
        return place is not None

    def withdraw(self, id: Id) -> list[Topic]:
        """The record is there, but in no channel any more: the channels in which somebody may have it."""
        if not self.names:
            return [self._hub.topic(self._model)]
        return self._topics_left(self._last.pop(str(id), None), is_known=False)

    def leave(self, id: Id) -> list[Topic]:
        """The record is deleted: the channels in which somebody may have it."""
        if not self.names:
            return [self._hub.topic(self._model)]
        place = self._last.pop(str(id), None)
        # Who has the record is not known without its place; ids are not secret.
        return self._hub.topics_of(self._model) if place is None else [self._hub.topic(self._model, *place)]

    def _topics_forgotten(self) -> list[Topic]:
        """The channels whose subscribers may have a record of which nobody knows any more that it is there."""
        topics = [topic for key in self._forgotten if (topic := self._hub.find(self._model, key)) is not None]
        self._forgotten = {topic.key for topic in topics}
        return topics
