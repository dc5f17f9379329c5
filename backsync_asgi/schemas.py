"""Schemas: from what a client sent to a typed object, or to a refusal that names each fault; it knows no models.

The checking is done by msgspec or pydantic. Neither is imported unless a type needs it. The way back, from a typed
object to JSON, is that of all values: `messages.encode`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from . import messages
from .errors import EncodeError, Reject
from .logs import escaped
from .messages import join, shorten

Unknown = Literal["drop", "refuse"]

MAX_FAULTS = 100  # that one refusal tells; nobody reads more, and a list may have thousands
MAX_TEXT = 200  # characters of one message: some quote what was sent
MAX_NAME = 60  # characters of an unknown field's name that are sent back

# What schemas cannot have: JSON has no form for it that `messages.encode` writes.
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), "a list"),
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray", "builtins.memoryview"), "a string"),
    **dict.fromkeys(("datetime.timedelta", "builtins.complex"), "a number"),
}


class Fault(NamedTuple):
    """What is wrong with one field. field: its path, such as `a.b[2]`; empty for the whole.

    Either nouns: what would have been right, as `an integer`, and got: what there was; or text: the whole message.
    """

    field: str
    text: str = ""
    nouns: tuple[str, ...] = ()
    got: str = ""


class Field(NamedTuple):
    """A field of a record's type. name: on the wire. accepted: all names it is read by. type: with its annotations.

    default: its value where it is left out, MISSING where there is none or factory makes it.
    """

    name: str
    accepted: frozenset[str]
    type: Any
    required: bool
    default: Any = dataclasses.MISSING
    factory: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Schema:
    """What data must be like. Made by `schema_of`.

    type: the annotation. fields: those of a record; None where it is no single kind of record.
    """

    type: Any
    fields: tuple[Field, ...] | None
    _check: Callable[[Any], tuple[Any, list[Fault]]]
    _owned: frozenset[str]  # the fields that the framework sets
    _known: frozenset[str]  # these, and those that are read or written
    _hidden: frozenset[str]  # those that the type does not get: it does not have them, or computes them itself
    _nullable: frozenset[str]  # those of the framework's that null stands for the default of
    _refuses: bool  # whether unknown fields are refused here
    _hides: bool  # whether the type is spared what it does not know in a stored record
    _is_rewritten: bool  # whether serializers of the type's own write it

    def load(self, data: Any, stored: Mapping[str, Any] | None = None, unset: Collection[str] = ()) -> Any:
        """The typed object in what a client sent: JSON values.

        stored: the record that a patch changes; then `data` are the changed fields and `unset` the removed ones. What
        is checked is the record as it would become; unknown fields are looked for in `data` alone.

        Raises Reject("invalid"), whose details are a list of `{"field", "message"}`, one for each fault, at most 100.
        """
        faults: list[Fault] = []
        if self.fields is not None and isinstance(data, dict):
            if self._refuses:
                faults = [Fault(_cut(name), "unknown field") for name in data if name not in self._known]
            if stored is not None:
                kept = {it: stored[it] for it in stored if not self._hides or it in self._known}
                data = {it: value for it, value in {**kept, **data}.items() if it == "id" or it not in unset}
            hidden = [it for it in self._hidden if it in data]
            hidden += [it for it in self._nullable if it in data and data[it] is None]
            if hidden:
                data = {it: value for it, value in data.items() if it not in hidden}
        value, found = self._check(data)
        if faults or found:
            raise refusal(faults + found)
        return value

    @property
    def leaves_out(self) -> bool:
        """Whether the type lacks fields that the framework sets, such as the id."""
        return not self._owned.isdisjoint(self._hidden)

    def is_like(self, value: object) -> bool:
        """Whether that is an object of the type; a mapping, where the type is a TypedDict."""
        kind = typing.get_origin(self.type) or self.type
        if hasattr(kind, "__total__"):  # a TypedDict, of whichever module
            return isinstance(value, Mapping)
        return isinstance(kind, type) and isinstance(value, kind)

    def record(self, value: Any, sent: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The record to be stored or sent: what `value` says, and what was sent of the framework's own fields (id,
        version, key) where `value` says nothing of them.

        Raises EncodeError and TypeError as `messages.record_of`.
        """
        record = dict(messages.record_of(value))
        if self._is_rewritten and messages.is_typed(value):
            self._check_rewritten(record)
        for name in self._owned & (sent or {}).keys():
            if record.get(name) is None:
                record[name] = (sent or {})[name]
        return record

    def _check_rewritten(self, record: Mapping[str, Any]) -> None:
        """Raises EncodeError where a serializer writes what the schema does not read, or reads as something else."""
        try:
            again = messages.record_of(self.load(dict(record)))
        except Reject as error:
            problem = error.message
        else:
            changed = [name for name in record if again.get(name) != record[name]]
            if not changed:
                return
            problem = f"{', '.join(map(shorten, changed))} would be another value then."
        raise EncodeError(f"A serializer of {_named(self.type)} writes what it cannot read back. {problem}")


def schema_of(annotation: Any, *, owned: Collection[str] = ("id",), unknown: Unknown = "drop") -> Schema | None:
    """The schema that an annotation means; None for what says nothing: no annotation, Any, dict, Mapping.

    owned: the fields that the framework sets: the id, the version, the key's. They are never unknown.
    unknown: what happens to fields that a record's type does not have. A type that says itself what happens to them
        (`forbid_unknown_fields=True`, `extra="forbid"`, `extra="allow"`) is obeyed.

    Raises TypeError for a type that cannot be checked or sent, or where no library is installed that could check it;
    ValueError for another `unknown`.
    """
    if unknown not in ("drop", "refuse"):
        raise ValueError(f"A schema got unknown={unknown!r}, expected 'drop' or 'refuse'.")
    if says_nothing(annotation):
        return None
    try:
        fields = fields_of(annotation)
        check = _CHECKS[_library_of(annotation)](annotation)
    except NameError as error:
        raise TypeError(f"{_named(annotation)} cannot be a schema: {error}. Define it at the module's level.") from None
    if fields is None:
        none = frozenset[str]()
        return Schema(annotation, None, check, none, none, none, none, False, False, False)
    cls = typing.get_origin(annotation) or annotation
    names = frozenset[str]().union(*(it.accepted for it in fields))
    if tag := getattr(getattr(cls, "__struct_config__", None), "tag_field", None):
        names |= {tag}
    extra, derived = _extra_of(cls), _derived_of(cls)
    return Schema(
        annotation,
        fields,
        check,
        frozenset(owned),
        _known=names | derived | set(owned),
        _hidden=derived if extra == "allow" else derived | (set(owned) - names),
        _nullable=frozenset(it.name for it in fields if it.name in owned and not it.required),
        _refuses=unknown == "refuse" and extra is None,
        _hides=extra != "allow",
        _is_rewritten=_has_serializer(getattr(cls, "__pydantic_core_schema__", None)),
    )


def data_annotation(function: Callable[..., Any]) -> Any:
    """The annotation of a handler's second parameter, forward references resolved; `inspect.Parameter.empty` for none.

    Names are looked up in the function's module, then in the functions of that module that are running: in one of them
    the handler is being defined. The handler's other annotations need not be resolvable.

    Raises TypeError for a name that is nowhere.
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [it for it in parameters if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
    parameter = positional[1] if len(positional) > 1 else None
    if parameter is None or parameter.annotation is parameter.empty:
        return inspect.Parameter.empty
    module = _globals_of(function)
    bearer = types.SimpleNamespace(__annotations__={"data": parameter.annotation})
    failure: Exception | None = None
    for names in _namespaces(module):
        try:
            return typing.get_type_hints(bearer, module, names, include_extras=True)["data"]
        except (NameError, SyntaxError, AttributeError, TypeError) as error:
            failure = failure or error
    raise TypeError(
        f"{function!r} annotates {parameter.name!r} with {shorten(parameter.annotation)}: {failure}. Define or import "
        "it before the handler, and not only under `if TYPE_CHECKING`."
    )


def _globals_of(function: Any) -> dict[str, Any]:
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isfunction(function) and inspect.isfunction(type(function).__call__):
            function = type(function).__call__
        else:
            return getattr(function, "__globals__", {})


def _namespaces(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {}
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is module:
            yield dict(frame.f_locals)
        frame = frame.f_back


# Types


def says_nothing(annotation: Any) -> bool:
    """Whether an annotation leaves the data as it is: none, Any, dict or Mapping of whatever, also with `| None`."""
    if annotation in (inspect.Parameter.empty, Any, object, dict, Mapping):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return all(it is types.NoneType or says_nothing(it) for it in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return not arguments or (arguments[0] in (str, Any) and arguments[1] in (Any, object))
    return False


@functools.lru_cache(1_000)
def fields_of(annotation: Any) -> tuple[Field, ...] | None:
    """The fields of a Struct, pydantic model, dataclass or TypedDict, also a generic one; None for another type.

    Raises TypeError for a field that is written under a name by which it is not read, NameError for a type that is not
    there.
    """
    cls: Any = typing.get_origin(annotation) or annotation
    if not isinstance(cls, type):
        return None
    found: list[Field]
    kind: Any = cls
    if hasattr(cls, "__struct_fields__"):
        if kind.__struct_config__.array_like:
            return None
        found = [_field_of_struct(it) for it in sys.modules["msgspec"].structs.fields(annotation)]
    elif _is_model(kind):
        found = [_field_of_model(kind, name, it) for name, it in kind.model_fields.items()]
    elif dataclasses.is_dataclass(cls):
        made = [it for it in dataclasses.fields(cls) if it.init]
        none = dataclasses.MISSING
        required = {it.name for it in made if it.default is none and it.default_factory is none}
        plain = _plain_fields(annotation, cls, [it.name for it in made], required)
        found = [it._replace(**_default(of.default, of.default_factory)) for it, of in zip(plain, made, strict=True)]
    elif hasattr(cls, "__required_keys__"):
        found = _plain_fields(annotation, cls, list(typing.get_type_hints(cls)), kind.__required_keys__)
    else:
        return None
    for field in found:
        if field.name not in field.accepted or sum(field.name in it.accepted for it in found) > 1:
            raise TypeError(
                f"{_named(cls)}.{field.name} is read as {sorted(field.accepted)} and written as {field.name!r}. A "
                "record comes back as it was sent: one field, and one name for both (pydantic: `alias`)."
            )
    return tuple(found)


def _is_model(cls: Any) -> bool:
    return hasattr(cls, "__pydantic_serializer__") and hasattr(cls, "model_fields")


def _field_of_model(cls: Any, name: str, info: Any) -> Field:
    alias = info.validation_alias
    accepted = {it for it in [alias, *getattr(alias, "choices", ())] if isinstance(it, str)}
    if alias is None or any(cls.model_config.get(it) for it in ("populate_by_name", "validate_by_name")):
        accepted.add(name)
    annotation = typing.Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    needs_others = bool(getattr(info, "default_factory_takes_validated_data", False))
    default = {} if info.is_required() or needs_others else _default(info.default, info.default_factory)
    return Field(info.serialization_alias or name, frozenset(accepted), annotation, info.is_required(), **default)


def _field_of_struct(info: Any) -> Field:
    default = {} if info.required else _default(info.default, info.default_factory)
    return Field(info.encode_name, frozenset({info.encode_name}), info.type, info.required, **default)


def _default(value: Any, factory: Any) -> dict[str, Any]:
    """What a Field has of a default; each library marks in its own way that there is no factory."""
    return {"factory": factory} if callable(factory) else {"default": value}


def _plain_fields(annotation: Any, cls: Any, names: list[str], required: Collection[str]) -> list[Field]:
    hints = typing.get_type_hints(cls, include_extras=True)
    # In a string, the class could not see it.
    said = {name: _name_of(typing.get_origin(it)) for name, it in hints.items()}
    required = {it for it in names if said[it] == "Required" or (it in required and said[it] != "NotRequired")}
    meant = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(annotation), strict=False))
    for name in names:
        marks = [*getattr(hints[name], "__metadata__", ()), getattr(cls, "__pydantic_fields__", {}).get(name)]
        if any(getattr(it, "alias", None) or getattr(it, "validation_alias", None) for it in marks):
            raise TypeError(f"{_named(cls)}.{name} has an alias, which only a pydantic model is written with: use one.")
    return [Field(it, frozenset({it}), _replaced(_bare(hints[it]), meant), it in required) for it in names]


def _bare(annotation: Any) -> Any:
    """The type in Required, NotRequired or ReadOnly."""
    while _name_of(typing.get_origin(annotation)) in ("Required", "NotRequired", "ReadOnly"):
        annotation = typing.get_args(annotation)[0]
    return annotation


def _replaced(annotation: Any, meant: Mapping[Any, Any]) -> Any:
    """A generic type's annotation with what its type variables mean."""
    if annotation in meant:
        return meant[annotation]
    variables = getattr(annotation, "__parameters__", ())
    if not meant or not variables or isinstance(annotation, type):
        return annotation
    return annotation[tuple(meant.get(it, it) for it in variables)]


def _derived_of(cls: Any) -> frozenset[str]:
    """The fields that are written and not read."""
    computed = getattr(cls, "model_computed_fields", {}) if _is_model(cls) else {}
    made = {it.name for it in dataclasses.fields(cls) if not it.init} if dataclasses.is_dataclass(cls) else set()
    return frozenset({it.alias or name for name, it in computed.items()} | made)


def _has_serializer(schema: Any) -> bool:
    """Whether functions of the application's write a part of a pydantic type; pydantic's own read what they write."""
    if isinstance(schema, (list, tuple)):
        return any(map(_has_serializer, schema))
    if not isinstance(schema, dict):
        return False
    written_by = schema.get("serialization")
    function = written_by.get("function") if isinstance(written_by, dict) else None
    if function is not None and not str(getattr(function, "__module__", "")).startswith("pydantic."):
        return True
    return any(_has_serializer(part) for name, part in schema.items() if name != "serialization")


def _extra_of(cls: Any) -> str | None:
    if getattr(getattr(cls, "__struct_config__", None), "forbid_unknown_fields", False):
        return "forbid"
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None)
    return config.get("extra") if isinstance(config, dict) else None


def _named(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or shorten(annotation)


def _name_of(special: Any) -> str:
    return getattr(special, "__name__", None) or getattr(special, "_name", None) or ""


def _library_of(annotation: Any) -> str:
    """Who checks it: the library that its types and constraints are of, else the first that is installed."""
    owners: set[str] = set()
    _survey(annotation, _named(annotation), owners, [])
    if len(owners) > 1:
        raise TypeError(f"{_named(annotation)} mixes types of {' and '.join(sorted(owners))}: use those of one.")
    if owners:
        return owners.pop()
    for library in _CHECKS:
        try:
            __import__(library)
        except ImportError:
            continue
        return library
    raise TypeError(f"Data is checked against {_named(annotation)} by msgspec or pydantic: pip install msgspec")


def _survey(annotation: Any, path: str, owners: set[str], seen: list[Any]) -> None:
    """Whose types and constraints stand in a type. Raises TypeError for what JSON cannot carry."""
    if annotation in seen:
        return
    seen.append(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    cls = origin or annotation
    if isinstance(annotation, (typing.TypeVar, typing.NewType)) or hasattr(annotation, "__value__"):
        inner = getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None)
        _survey(inner, path, owners, seen)
        return
    for mark in getattr(annotation, "__metadata__", ()):
        owners.update(_owner(type(mark)))
    if isinstance(cls, type):
        if remedy := _REFUSED.get(f"{cls.__module__}.{cls.__name__}"):
            raise TypeError(f"{path} is a {cls.__name__}, which JSON cannot carry: use {remedy}.")
        if hasattr(cls, "get_secret_value"):
            raise TypeError(
                f"{path} is a {cls.__name__}, which is written as asterisks: use str, and leave it out of reads."
            )
        if issubclass(cls, Mapping) and arguments and _base_of(arguments[0]) not in (str, Any):
            raise TypeError(f"{path} has keys that are not strings, which JSON cannot carry.")
        if hasattr(cls, "__struct_fields__"):
            owners.add("msgspec")
        if hasattr(cls, "__pydantic_serializer__"):
            owners.add("pydantic")
        for default in vars(cls).values() if dataclasses.is_dataclass(cls) else ():
            owners.update(_owner(type(default)) & {"pydantic"})
        for field in fields_of(annotation) or ():
            _survey(field.type, f"{path}.{field.name}", owners, seen)
    for argument in arguments if origin is not Literal else ():
        _survey(argument, path, owners, seen)


def _owner(cls: type[Any]) -> set[str]:
    """The library that a constraint is of."""
    package = cls.__module__.partition(".")[0]
    return {{"annotated_types": "pydantic", "pydantic_core": "pydantic"}.get(package, package)} & _CHECKS.keys()


def _base_of(annotation: Any) -> Any:
    """The type without Annotated, Optional and names for it."""
    while True:
        arguments = typing.get_args(annotation)
        others = [it for it in arguments if it is not types.NoneType]
        origin = typing.get_origin(annotation)
        if hasattr(annotation, "__supertype__") or hasattr(annotation, "__value__"):
            annotation = getattr(annotation, "__supertype__", None) or annotation.__value__
        elif origin is typing.Annotated or (origin in (typing.Union, types.UnionType) and len(others) == 1):
            annotation = others[0]
        else:
            return annotation


# Faults

_NOUNS: Mapping[str, str] = {
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "array": "an array",
    "object": "an object",
    "null": "null",
    "datetime": "a date and time such as '2026-01-31T12:00:00Z'",
    "date": "a date such as '2026-01-31'",
    "time": "a time such as '12:00:00'",
    "uuid": "a UUID",
    "decimal": "a decimal number",
}
_KINDS = {dict: "object", list: "array", types.NoneType: "null"}


def refusal(faults: Iterable[Fault]) -> Reject:
    """The answer to data with these faults."""
    texts: dict[str, list[str]] = {}
    nouns: dict[str, tuple[set[str], str]] = {}
    for fault in faults:
        said = texts.setdefault(fault.field, [])
        if fault.text and fault.text not in said:
            said.append(_cut(fault.text, MAX_TEXT))
        elif fault.nouns:
            nouns.setdefault(fault.field, (set(), fault.got))[0].update(fault.nouns)
    details = []
    for field, said in texts.items():
        if field in nouns:
            expected, got = nouns[field]
            order = [it for it in _NOUNS.values() if it in expected]
            said.insert(0, f"expected {' or '.join(order)}, got {got}" if got else f"expected {' or '.join(order)}")
        details += [{"field": field or "data", "message": it} for it in said]
    told = "; ".join(f"{it['field']}: {it['message']}" for it in details[:3])
    more = f"; and {len(details) - 3} more" if len(details) > 3 else ""
    return Reject("invalid", f"The data was refused: {escaped(told)}{more}", details[:MAX_FAULTS])


def _cut(text: object, limit: int = MAX_NAME) -> str:
    shown = str(text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def _noun_of(value: Any) -> str:
    kind = type(value)
    return _NOUNS.get(_KINDS.get(kind, kind.__name__), kind.__name__)


def _one_of(values: Iterable[Any]) -> str:
    shown = [repr(it) for it in values]
    return "expected " + " or ".join(it for it in (", ".join(shown[:-1]), shown[-1]) if it)


# msgspec


def _check_by_msgspec(annotation: Any) -> Callable[[Any], tuple[Any, list[Fault]]]:
    import msgspec

    try:
        msgspec.json.schema(annotation)
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(f"{_named(annotation)} cannot be a schema: {error}") from None

    def convert(data: Any, wanted: Any = annotation) -> tuple[Any, str]:
        try:
            return msgspec.convert(data, wanted), ""
        except msgspec.ValidationError as error:
            return None, str(error)
        except RecursionError:
            return None, "nested too deeply"

    def faults(wanted: Any, value: Any, path: str) -> list[Fault]:
        """All faults. msgspec stops at the first one, so each part of what it refuses is tried by itself."""
        _, problem = convert(value, wanted)
        if not problem:
            return []
        found: list[Fault] = []
        for part, child, child_path in _parts(wanted, value, path):
            found += [Fault(child_path, "missing")] if child is _MISSING else faults(part, child, child_path)
            if len(found) > MAX_FAULTS:
                break
        found += [Fault(join(path, _cut(name)), "unknown field") for name in _unwelcome(wanted, value)]
        return found or [_fault_of_msgspec(problem, wanted, path)]

    def check(data: Any) -> tuple[Any, list[Fault]]:
        value, problem = convert(data)
        if problem:
            try:
                return None, faults(annotation, data, "")
            except RecursionError:
                return None, [Fault("", "nested too deeply")]
        # Its Decimals may be NaN and its times have a zone, which could not be sent.
        if unsure and (culprit := messages.find_culprit(value)) is not None:
            return None, [Fault(culprit, unsure)]
        return value, []

    mentioned: list[Any] = []
    _survey(annotation, "", set(), mentioned)
    said = {"Decimal": "a decimal number", "time": "a time without a time zone"}
    unsure = " or ".join(text for name, text in said.items() if any(_name_of(it) == name for it in mentioned))
    unsure = unsure and f"expected {unsure}"
    return check


_MISSING: Any = object()


def _parts(wanted: Any, value: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """The parts of a value with the types that they should have; _MISSING for what should be there."""
    wanted = _base_of(wanted)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        meant = [it for it in arguments if _is_meant(it, value)]
        if len(meant) == 1:
            yield from _parts(meant[0], value, path)
        return
    mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if isinstance(value, list) and isinstance(origin, type) and not mapping and issubclass(origin, Collection):
        if origin is tuple and arguments[-1] is not Ellipsis:
            arguments = arguments if len(arguments) == len(value) else ()
        elif arguments:
            arguments = (arguments[0],) * len(value)
        for index, (part, child) in enumerate(zip(arguments, value, strict=False)):
            yield part, child, f"{path}[{index}]"
    if not isinstance(value, dict):
        return
    fields = fields_of(wanted)
    if fields is not None:
        for field in fields:
            if field.required or field.name in value:
                yield field.type, value.get(field.name, _MISSING), join(path, field.name)
    elif mapping:
        for name, child in value.items():
            yield arguments[1] if arguments else Any, child, join(path, _cut(name))


def _unwelcome(wanted: Any, value: Any) -> list[str]:
    """The fields that a type forbids."""
    base = _base_of(wanted)
    fields = fields_of(base)
    cls: Any = typing.get_origin(base) or base
    if fields is None or not isinstance(value, dict) or _extra_of(cls) != "forbid":
        return []
    names = {it.name for it in fields} | {cls.__struct_config__.tag_field}
    return [name for name in value if name not in names]


def _is_meant(member: Any, value: Any) -> bool:
    """Whether that member of a union is the one that a value was meant for."""
    base = _base_of(member)
    cls = typing.get_origin(base) or base
    if not isinstance(cls, type):
        return False
    if isinstance(value, dict):
        config = getattr(cls, "__struct_config__", None)
        if config is not None and config.tag is not None:
            return bool(value.get(config.tag_field) == config.tag)
        return issubclass(cls, Mapping) or fields_of(base) is not None
    return isinstance(value, list) and issubclass(cls, (list, tuple, collections.abc.Sequence)) and cls is not str


_TYPES = re.compile(r"Expected `([^`]+)`(?:, got `(\w+)`)?(.*)")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_INVALID = re.compile(r"Invalid (?:RFC3339 encoded )?(datetime|date|time|UUID|decimal)\b")


def _fault_of_msgspec(problem: str, wanted: Any, path: str) -> Fault:
    """The fault that msgspec tells, in our words."""
    problem, _, inside = problem.partition(" - at `")
    deeper = inside.rpartition("`")[0].rpartition("$")[2].removeprefix(".")
    if deeper:
        path = path + deeper if deeper.startswith("[") else join(path, deeper)
    elif choices := _choices(wanted):
        return Fault(path, _one_of(choices))
    if found := _FIELD.fullmatch(problem):
        text = "missing" if found[1] == "missing required" else "unknown field"
        return Fault(join(path, _cut(found[2])), text)
    if found := _INVALID.match(problem):
        return Fault(path, nouns=(_NOUNS[found[1].lower()],))
    if problem.startswith("Invalid "):  # it quotes what was sent
        return Fault(path, "expected one of the allowed values")
    if found := _TYPES.fullmatch(problem):
        names = [it for it in found[1].split(" | ") if it != "null"] or ["null"]
        if not found[3]:
            return Fault(path, nouns=tuple(_NOUNS.get(it, it) for it in names), got=_NOUNS.get(found[2] or "", ""))
        # Of numbers, pydantic does not tell which kind.
        noun = _NOUNS["float"] if names[0] in ("int", "float") else _NOUNS.get(names[0], names[0])
        rest = found[3].replace(" matching regex ", " matching ").replace(" that's a multiple", ": a multiple")
        if "timezone" in rest:
            return Fault(path, "expected a date and time with" + ("out" if "without" in rest else "") + " a timezone")
        return Fault(path, f"expected {noun}{rest.partition(', got')[0]}")
    return Fault(path, problem)


def _choices(wanted: Any) -> list[Any]:
    base = _base_of(wanted)
    if typing.get_origin(base) is Literal:
        return list(typing.get_args(base))
    return [it.value for it in base] if isinstance(base, type) and issubclass(base, enum.Enum) else []


# pydantic


def _check_by_pydantic(annotation: Any) -> Callable[[Any], tuple[Any, list[Fault]]]:
    import pydantic

    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)
    except (pydantic.PydanticUserError, TypeError, RuntimeError) as error:
        raise TypeError(f"{_named(annotation)} cannot be a schema: {error}") from None
    config = getattr(annotation, "model_config", None) or getattr(annotation, "__pydantic_config__", None) or {}
    strict = None if "strict" in config else True  # what the model says itself counts

    def check(data: Any) -> tuple[Any, list[Fault]]:
        try:
            # As JSON: there, texts become dates and arrays tuples, in strict mode too.
            value = adapter.validate_json(messages.encode(data), strict=strict)
            if strict is None:
                messages.encode(value)  # a lenient model takes "NaN" for a number, which could not be sent
            return value, []
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False)
            return None, [_fault_of_pydantic(it, data) for it in found]
        except (EncodeError, RecursionError) as error:
            return None, [Fault("", str(error))]

    return check


_PYDANTIC_NOUNS: Mapping[str, str] = {
    **dict.fromkeys(("list", "tuple", "iterable"), "array"),
    **dict.fromkeys(("dict", "mapping", "model", "dataclass"), "object"),
    "string": "str",
    "none": "null",
    "finite": "decimal",
}
_PYDANTIC_TEXTS: Mapping[str, str] = {
    "missing": "missing",
    "missing_argument": "missing",
    "extra_forbidden": "unknown field",
    "unexpected_keyword_argument": "unknown field",
    "greater_than": "expected a number > {gt}",
    "greater_than_equal": "expected a number >= {ge}",
    "less_than": "expected a number < {lt}",
    "less_than_equal": "expected a number <= {le}",
    "multiple_of": "expected a number: a multiple of {multiple_of}",
    "string_too_short": "expected a string of length >= {min_length}",
    "string_too_long": "expected a string of length <= {max_length}",
    "string_pattern_mismatch": "expected a string matching '{pattern}'",
    "too_short": "expected {collection} of length >= {min_length}",
    "too_long": "expected {collection} of length <= {max_length}",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "union_tag_invalid": "expected one of the allowed values",
    "timezone_aware": "expected a date and time with a timezone",
    "timezone_naive": "expected a date and time without a timezone",
    "value_error": "{error}",
    "assertion_error": "{error}",
}


def is_pydantic_text(kind: Any) -> bool:
    """Whether it is a type of pydantic's own whose values are texts in JSON, such as `HttpUrl` and `EmailStr`."""
    if not (getattr(kind, "__module__", None) or "").startswith("pydantic"):
        return False
    import pydantic

    try:
        return pydantic.TypeAdapter(kind).json_schema(mode="serialization").get("type") == "string"
    except (pydantic.PydanticUserError, ImportError):  # it has no JSON schema, or lacks a package, as EmailStr may
        return False


def _fault_of_pydantic(error: Mapping[str, Any], data: Any) -> Fault:
    """The fault that pydantic tells, in our words."""
    kind: str = error["type"]
    path = _path_of(error["loc"], data, kind == "missing")
    if template := _PYDANTIC_TEXTS.get(kind):
        context = error.get("ctx", {})
        collection = "an object" if context.get("field_type") == "Dictionary" else "an array"
        return Fault(path, template.format(**context, collection=collection))
    stem = kind.partition("_")[0]
    noun = _NOUNS.get(_PYDANTIC_NOUNS.get(stem, stem))
    if noun is None:
        return Fault(path, error["msg"])
    got = "" if kind.endswith("_parsing") or stem == "finite" else _noun_of(error["input"])  # a text in another form
    return Fault(path, nouns=(noun,), got=got)


def _path_of(location: tuple[str | int, ...], data: Any, missing: bool) -> str:
    """The path of a fault. What pydantic puts between, such as the member of a union, is not in the data."""
    path = ""
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(step, int) and isinstance(data, list):
            path += f"[{step}]"
            data = data[step] if step < len(data) else None
        elif isinstance(data, dict) and (step in data or (last and missing)):
            path = join(path, _cut(step))
            data = data.get(step)
    return path


_CHECKS: Mapping[str, Callable[[Any], Callable[[Any], tuple[Any, list[Fault]]]]] = {
    "msgspec": _check_by_msgspec,
    "pydantic": _check_by_pydantic,
}
