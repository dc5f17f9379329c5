"""Rights: the rule of who may write which record of a model; it knows neither stores nor turns."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from . import messages
from .errors import Reject
from .handlers import Caller, HandlerFunction, check_signature
from .logs import Sparing

logger = logging.getLogger("backsync")


class Rights:
    """The rule of one model, if it has one."""

    def __init__(self, model: str, call: Caller) -> None:
        self._model = model
        self._call = call
        self._rule: HandlerFunction | None = None
        self.asks = False  # whether there is a rule
        self.sparing = Sparing(logger, time.monotonic)

    def set_rule(self, rule: HandlerFunction) -> None:
        """Take the rule. Raises TypeError for a function with other parameters, ValueError for a second one."""
        check_signature(rule, 4, "a rule takes (ctx, method, old, new)")
        if self._rule is not None:
            raise ValueError(f"{self._model}.allow was given twice; a model has one rule.")
        self._rule, self.asks = rule, True

    async def ask(self, ctx: Any, method: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
        """Returns if the rule allows the write. Raises Reject, or what the rule raises; both records are copied."""
        if self._rule is None:
            return
        answer = await self._call.apart(self._rule, ctx, method, copy.deepcopy(old), copy.deepcopy(new))
        if answer is True:
            return
        if answer is not False:
            got = messages.shorten(answer)
            what = "The rule of %s returned %s, expected True or False; the write is refused."
            self.sparing.log(logging.ERROR, "returned", what, self._model, got)
        raise self.refusal(method)

    def refusal(self, method: str) -> Reject:
        """What a client gets that may not write a record."""
        return Reject("forbidden", f"You may not {method} this record of {self._model}.")


@dataclass(slots=True)
class Permit:
    """What the rule has allowed one request to do. A handler may do more, and then the rule is asked again.

    id: of the record, None for a new one. places: the channels in which the record was and will be.
    version: that of the record which the rule was shown, to be named by the first write; None: none. has_named: it was.
    """

    method: str
    id: object
    places: Collection[Hashable]
    version: int | None = None
    has_named: bool = False

    def covers(self, method: str, id: object, place: Hashable) -> bool:
        """Whether that is what was allowed. A record that may be deleted may be kept as well, such as marked."""
        if (id is None) != (self.id is None) or (id is not None and str(id) != str(self.id)):
            return False
        return self.method == "delete" if method == "delete" else place in self.places
