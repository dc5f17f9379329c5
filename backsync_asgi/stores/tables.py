"""How records lie in the rows of a database: JSON in one column, or a column for each field; it runs no statement."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import re
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

from backsync_asgi.errors import EncodeError, Reject
from backsync_asgi.messages import MAX_SAFE_INTEGER, encode, is_id, shorten
from backsync_asgi.schemas import Field, fields_of, is_pydantic_text

from .base import Record, Selection, encode_record, equal, id_number_sql, invalid

Condition = sa.ColumnElement[bool]


class Selectable(Protocol):
    """Where a record's fields are in rows, and how they compare there.

    order: what the own order goes by.
    """

    id: Any
    order: Any

    def columns(self) -> Sequence[Any]:
        """What is selected for a record."""

    def key(self, id: object) -> Any:
        """What the id's column holds for an id, or None where it can hold no such."""

    def equals(self, field: str, value: Any) -> Condition | None:
        """The condition that a field has a value; None: only the decoded record can tell."""

    def place(self, field: str) -> list[sa.ColumnElement[Any]]:
        """What to order by for a field, most significant first."""

    def bounds(self, field: str, value: Any) -> list[Any]:
        """The same for a value that a field may have, as parameters; None: nothing more to compare there."""


class Layout(Selectable, Protocol):
    """The same of a table that is written, too."""

    table: sa.Table
    indexes: Sequence[sa.Index]  # that we have made, and make where they are missing

    def values(self, record: Record, *, new: bool) -> dict[str, Any]:
        """What is written for a record. new: for a row that is not there yet. Raises Reject."""

    def record(self, row: sa.Row[Any]) -> Record:
        """The record in a row."""

    def text(self, row: sa.Row[Any], record: Record) -> str:
        """The same as JSON text. Raises EncodeError."""

    def check_kept(self, values: Mapping[str, Any], row: sa.Row[Any]) -> None:
        """Raises Reject("invalid") where a row that was written does not hold what was written."""


def sendable(layout: Layout, row: sa.Row[Any]) -> tuple[Record, str]:
    """The record in a row, and its JSON text. Raises EncodeError or ValueError where it cannot be sent."""
    record = layout.record(row)
    if type(record) is not dict or not is_id(record.get("id")):
        raise EncodeError("It has no id that a record can have: a string of 1-128 characters or an integer.")
    return record, layout.text(row, record)


def select(layout: Selectable, selection: Selection) -> tuple[sa.Select[Any], dict[str, Any]]:
    """The statement for a selection, and the conditions that are left to be looked at in the decoded records."""
    statement = sa.select(*layout.columns())
    rest: dict[str, Any] = {}
    for field, value in selection.where.items():
        condition = layout.equals(field, value)
        if condition is None:
            rest[field] = value
        else:
            statement = statement.where(condition)
    if not selection.order:
        return statement.order_by(layout.order), rest
    order = selection.places
    places = [(place, descending) for field, descending in order for place in layout.place(field)]
    statement = statement.order_by(*(place.desc() if descending else place for place, descending in places))
    if selection.after is not None:
        bounds = [bound for field, _ in order for bound in layout.bounds(field, selection.after.get(field))]
        statement = statement.where(_beyond(places, bounds))
    if selection.limit is not None and not rest:
        statement = statement.limit(selection.limit)
    return statement, rest


def _beyond(places: Sequence[tuple[sa.ColumnElement[Any], bool]], bounds: Sequence[Any]) -> Condition:
    """That a row comes after a place in the order."""
    compared = [(*place, bound) for place, bound in zip(places, bounds, strict=True) if bound is not None]
    directions = {descending for _, descending, _ in compared}
    if len(directions) == 1:  # as a row value, which finds its place in an index
        one = sa.tuple_(*(place for place, _, _ in compared))
        other = sa.tuple_(*(bound for _, _, bound in compared))
        first, _, bound = compared[0]  # by itself, too: SQLite finds no row value whose parts are expressions
        if True in directions:
            return sa.and_(first <= bound, one < other)
        return sa.and_(first >= bound, one > other)
    condition: Condition = sa.false()
    for place, descending, bound in reversed(compared):
        condition = sa.or_(place < bound if descending else place > bound, sa.and_(place == bound, condition))
    return condition


# ── Free-form records: JSON in one column ────────────────────────────────────────────────────────────────────────────


class _Json(UserDefinedType[str]):
    """JSON that is written and read as text, as it was: PostgreSQL's `json` keeps the order of fields."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(column, sa.Text)


class FreeForm:
    """Records of any fields, in a table of our own: `seq` (the order in which they came), `id` as text, `data`."""

    def __init__(self, name: str, dialect: str, indexes: Sequence[Sequence[str]] = ()) -> None:
        text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # ids in the order of code points
        self.table = sa.Table(
            name,
            sa.MetaData(),
            sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
            sa.Column("id", text, nullable=False, unique=True),
            sa.Column("data", sa.Text().with_variant(_Json(), "postgresql"), nullable=False),
        )
        self.id: sa.ColumnElement[Any] = self.table.c.id
        self.order: sa.ColumnElement[Any] = self.table.c.seq
        self._sqlite = dialect == "sqlite"
        self._indexed = {field for fields in indexes for field in fields}
        for fields in ((), *indexes):
            places = [place for field in (*fields, "id") for place in self.place(field)]
            label = re.sub(r"\W+", "_", "_".join((name, *fields, "id")))
            sa.Index(f"ix_{label}"[:63], *map(Grouping, places))
        self.indexes: Sequence[sa.Index] = list(self.table.indexes)

    def columns(self) -> Sequence[sa.ColumnElement[Any]]:
        return [self.table.c.data]

    def key(self, id: object) -> Any:
        return str(id) if is_id(id) and is_text(str(id)) else None

    def values(self, record: Record, *, new: bool) -> dict[str, Any]:
        text = encode_record(record)
        check_nul(text, record)
        return {"id": str(record["id"]), "data": text}

    def record(self, row: sa.Row[Any]) -> Record:
        record: Record = orjson.loads(row[0])
        return record

    def text(self, row: sa.Row[Any], record: Record) -> str:
        return row[0]  # type: ignore[no-any-return]

    def check_kept(self, values: Mapping[str, Any], row: sa.Row[Any]) -> None:
        """JSON is kept as it is."""

    def equals(self, field: str, value: Any) -> Condition | None:
        if field == "id":
            key = self.key(value)
            return sa.false() if key is None else self.table.c.id == key
        if isinstance(value, (list, dict)) or not is_plain(field):
            return None
        kinds = {
            type(None): ("null",),
            bool: ("boolean", str(value).lower()),
            int: ("number", "integer", "real"),
            float: ("number", "integer", "real"),
            str: ("string", "text"),
        }[type(value)]
        places = zip(self.place(field), self.bounds(field, value), strict=True)
        return sa.and_(*(place == bound for place, bound in places), self._kind(field).in_(kinds))

    def place(self, field: str) -> list[sa.ColumnElement[Any]]:
        if field == "id":
            return [id_number(self.table.c.id), self.table.c.id]
        if self._sqlite:  # its order of values is ours, once nothing comes before all numbers
            return [sa.func.coalesce(sa.func.json_extract(self.table.c.data, self._name(field)), _NOTHING)]
        kind, text = self._kind(field), self.table.c.data.op("->>", return_type=sa.Text())(self._name(field))
        number = sa.case(
            (kind == _inline("number"), sa.cast(text, sa.Numeric)),
            (sa.and_(kind == _inline("boolean"), text == _inline("true")), sa.cast(sa.literal_column("1"), sa.Numeric)),
            (kind == _inline("boolean"), sa.cast(sa.literal_column("0"), sa.Numeric)),
            (kind.in_([_inline(it) for it in _TEXTS]), sa.cast(_inline("Infinity"), sa.Numeric)),
            else_=sa.cast(_inline("-Infinity"), sa.Numeric),
        )
        characters = sa.case((kind.in_([_inline(it) for it in _TEXTS]), text), else_=_inline(""))
        return [number, sa.collate(characters, "C")]

    def bounds(self, field: str, value: Any) -> list[Any]:
        if field == "id":
            text = sa.literal(str(value), sa.Text())
            return [id_number(text), text]
        if isinstance(value, (list, dict)):
            value = encode(value)
        if self._sqlite:
            value = -math.inf if value is None else int(value) if isinstance(value, bool) else value
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                value = float(value)  # as SQLite takes such a number from JSON
            return [sa.literal(value, sa.types.NullType())]
        if value is None or isinstance(value, str):
            number = "-Infinity" if value is None else "Infinity"
        else:
            number = repr(value + 0)  # True becomes 1
        characters = value if isinstance(value, str) else ""
        return [sa.cast(sa.literal(number, sa.Text()), sa.Numeric), sa.literal(characters, sa.Text())]

    def _kind(self, field: str) -> sa.ColumnElement[str]:
        if self._sqlite:
            return sa.func.json_type(self.table.c.data, self._name(field), type_=sa.Text())
        return sa.func.json_typeof(self.table.c.data.op("->")(self._name(field)), type_=sa.Text())

    def _name(self, field: str) -> sa.ColumnElement[str]:
        """A field as the database names it: written out where it is a part of an index, which must be the same text."""
        name = f'$."{field}"' if self._sqlite else field
        return _inline(name) if field in self._indexed else sa.literal(name, sa.Text())


_NOTHING: sa.ColumnElement[Any] = sa.literal_column("-9e999")  # -infinity, which JSON does not have
_TEXTS = ("string", "array", "object")


def _inline(text: str) -> sa.ColumnElement[str]:
    return sa.literal_column("'" + text.replace("'", "''") + "'", sa.Text())


def is_plain(field: str) -> bool:
    """Whether a field's name stands in JSON as it is."""
    return field != "" and encode(field) == f'"{field}"'


def is_text(text: str) -> bool:
    """Whether databases can hold a text: NUL and halves of characters they cannot."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def check_nul(text: str, value: Mapping[str, Any]) -> None:
    """Raises Reject("invalid"), which names the field, where a NUL is in JSON: databases cannot hold it."""
    if "\\u0000" not in text:
        return
    for field, part in value.items():
        if "\x00" in field or "\x00" in _texts_of(part):
            raise invalid(field, "holds the character U+0000, which databases cannot keep")


def _texts_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(map(_texts_of, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple)):
        return "".join(map(_texts_of, value))
    return value if isinstance(value, str) else ""


# ── Records in columns ───────────────────────────────────────────────────────────────────────────────────────────────


class Fields:
    """How values compare with a table's own columns, or a mapped class's attributes: by field, `id` among them."""

    def __init__(self, fields: Mapping[str, Any], columns: Sequence[Any] = ()) -> None:
        self.fields = fields
        self._columns = columns or list(fields.values())  # what is selected
        self.id: Any = fields["id"]
        self.order: Any = self.id

    def columns(self) -> Sequence[Any]:
        return self._columns

    def key(self, id: object) -> Any:
        if not is_id(id) or not is_text(str(id)):
            return None
        if _python_type(self.id) is int:
            digits = str(id)
            return int(digits) if re.fullmatch(r"0|-?[1-9][0-9]{0,18}", digits) and _fits(int(digits)) else None
        try:
            return _to_column("id", self.id, str(id))
        except Reject:
            return None

    def equals(self, field: str, value: Any) -> Condition | None:
        column = self.fields.get(field)
        if column is None:
            return sa.false()
        if field == "id":
            key = self.key(value)
            return sa.false() if key is None else self.id == _parameter(column, key)
        if isinstance(_type_of(column), sa.JSON):
            return None
        if value is None:
            return column.is_(None)  # type: ignore[no-any-return]
        try:
            converted = _to_column(field, column, value)
        except Exception:  # noqa: BLE001 - a value that the column cannot hold is in none of its rows
            return sa.false()
        if not equal(_from_column(column, converted), value) and not isinstance(value, str):
            return sa.false()
        compared = exactly(column) if isinstance(_type_of(column), sa.String) else column
        same: Condition = compared == _parameter(column, converted)
        return same

    def place(self, field: str) -> list[sa.ColumnElement[Any]]:
        column = self._ordered(field)
        type_ = _type_of(column)
        place: Any = column
        if isinstance(type_, sa.Enum):
            members = _members(type_)
            place = sa.case(*((column == member, sa.literal(value)) for member, value in members.items()))
            if any(isinstance(value, str) for value in members.values()):
                place = by_code_points(place)
        elif _is_text(column):
            place = by_code_points(column)
            if field == "id":
                return [id_number(column), place]
        return [sa.case((column.is_(None), 0), else_=1), place] if _is_nullable(column) else [place]

    def bounds(self, field: str, value: Any) -> list[Any]:
        column = self._ordered(field)
        if field == "id":
            key = self.key(value)
            if key is None:
                raise invalid("$after", f"has the id {shorten(value)}, which no record can have")
            bound = _parameter(column, key)
            return [id_number(bound), bound] if _is_text(column) else [bound]
        if value is None and not _is_nullable(column):
            raise invalid("$after", f"has no {shorten(field)}, by which the records are ordered")
        bound = None
        if value is not None:
            converted = _to_column(field, column, value)
            is_enum = isinstance(_type_of(column), sa.Enum)
            bound = sa.literal(_plain_enum(converted)) if is_enum else _parameter(column, converted)
        return [sa.literal(int(value is not None)), bound] if _is_nullable(column) else [bound]

    def _ordered(self, field: str) -> Any:
        """The column of a field whose values have the same order in the database and, as JSON, in a browser."""
        column = self.fields.get(field)
        if column is None:
            raise invalid("$order", f"names {shorten(field)}, which is not a field that has an order")
        type_, kind = _type_of(column), _python_type(column)
        if field == "id":
            return column
        if isinstance(type_, sa.Enum) and len({isinstance(it, str) for it in _members(type_).values()}) == 1:
            return column
        if kind is decimal.Decimal:
            raise invalid("$order", f"names {shorten(field)}, a decimal: it is sent as text, which sorts otherwise")
        zoned = kind is datetime.time and _has_zone(type_)
        if kind not in _ORDERED or zoned or isinstance(type_, (sa.JSON, sa.Enum)):
            raise invalid("$order", f"names {shorten(field)}, which is not a field that has an order")
        if kind is str and _is_decorated(column, "process_result_value"):
            raise invalid("$order", f"names {shorten(field)}, which the database stores otherwise than it is sent")
        return column


_ORDERED = {str, int, float, bool, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID}


class by_code_points(FunctionElement[str]):  # noqa: N801 - it reads as a function of SQL
    """A text, compared as browsers and the other stores compare it, whatever the database's language is."""

    type = sa.Text()
    inherit_cache = True


class exactly(by_code_points):  # noqa: N801
    """The same to ask for equality, for which an index of PostgreSQL needs no other collation."""

    inherit_cache = True


@compiles(by_code_points)
@compiles(exactly)
def _compile_text(element: Any, compiler: Any, **options: Any) -> str:
    return str(compiler.process(next(iter(element.clauses)).self_group(), **options))


@compiles(by_code_points, "postgresql")
def _compile_for_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f'({_compile_text(element, compiler, **options)} COLLATE "C")'


@compiles(by_code_points, "sqlite")
@compiles(exactly, "sqlite")
def _compile_for_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return f"({_compile_text(element, compiler, **options)} COLLATE BINARY)"


class id_number(FunctionElement[int]):  # noqa: N801
    """The integer that an id of text is, else the largest one: see `id_key`."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(id_number)
def _compile_number(element: Any, compiler: Any, **options: Any) -> str:
    return f"({id_number_sql(compiler.dialect.name, _compile_text(element, compiler, **options))})"


class Columns(Fields):
    """Records of a table that is there already: a field for each column, the primary key is the `id`."""

    def __init__(self, table: sa.Table, fields: Mapping[str, sa.Column[Any]]) -> None:
        keys = list(table.primary_key.columns)
        if len(keys) != 1:
            raise ValueError(
                f"SQLStore got the table {table.name!r} with {len(keys)} primary key columns, expected one."
            )
        (key,) = keys
        self.table = table
        others = {
            name: column
            for name, column in fields.items()
            if column is not key and not isinstance(_type_of(column), sa.LargeBinary)  # which JSON cannot carry
        }
        self.indexes: Sequence[sa.Index] = ()
        super().__init__({"id": key} | others)
        if any(name == "id" and column is not key for name, column in fields.items()):
            raise ValueError(f"SQLStore got the table {table.name!r}, whose column `id` is not its primary key.")

    def values(self, record: Record, *, new: bool) -> dict[str, Any]:
        text = encode_record(record)
        check_nul(text, record)
        record = orjson.loads(text)  # dates and the like as every client sends them
        for field in record:
            if field not in self.fields:
                raise invalid(field, "is not a field of this model")
        values: dict[str, Any] = {}
        for field, column in self.fields.items():
            if field == "id":
                if record.get("id") is not None:
                    values[column.key] = self.key(record["id"])
                    if values[column.key] is None:
                        raise invalid("id", f"is {shorten(record['id'])}, expected {_python_type(column).__name__}")
                elif column.default is None and _python_type(column) is uuid.UUID:
                    values[column.key] = uuid.uuid4()
            elif field in record:
                values[column.key] = _to_column(field, column, record[field])
            elif column.server_default is not None or column.computed is not None or (new and column.default):
                continue
            elif column.default is not None and column.default.is_scalar:
                values[column.key] = typing.cast(Any, column.default).arg
            elif column.nullable:
                values[column.key] = None
            elif new or column.default is None:
                raise invalid(field, "is missing")
        return values

    def record(self, row: sa.Row[Any]) -> Record:
        cells = zip(self.fields.items(), row, strict=True)
        return {field: _from_column(column, value) for (field, column), value in cells}

    def text(self, row: sa.Row[Any], record: Record) -> str:
        return encode(record)

    def check_kept(self, values: Mapping[str, Any], row: sa.Row[Any]) -> None:
        for (field, column), cell in zip(self.fields.items(), row, strict=True):
            written = values.get(column.key)
            if isinstance(written, decimal.Decimal) and written != cell:
                raise invalid(field, f"is {written}, of which the database would keep {cell}")


def _is_nullable(column: Any) -> bool:
    return getattr(column, "nullable", True) is not False  # an expression may be NULL


def _is_text(column: Any) -> bool:
    return isinstance(_type_of(column), sa.String) and not isinstance(_type_of(column), sa.Enum)


def _parameter(column: Any, value: Any) -> Any:
    """A value to compare a column with. Of integers it may be a larger one than fits in."""
    return sa.literal(value, sa.BigInteger() if isinstance(column.type, sa.Integer) else column.type)


def _type_of(column: Any) -> Any:
    """A column's type without what decorates it: SQLModel's texts are such."""
    type_ = column.type
    while isinstance(type_, sa.types.TypeDecorator) and _kind_of(type_) is object:
        type_ = type_.impl_instance
    return type_


def _kind_of(type_: Any) -> type[Any]:
    try:
        kind: type[Any] = type_.python_type
        return kind
    except NotImplementedError:
        return object


def _is_decorated(column: Any, method: str) -> bool:
    """Whether a decorator of the column's type converts values itself, in that direction."""
    type_ = column.type
    while isinstance(type_, sa.types.TypeDecorator):
        if getattr(type(type_), method) is not getattr(sa.types.TypeDecorator, method):
            return True
        type_ = type_.impl_instance
    return False


_DIALECT = DefaultDialect()


def _python_type(column: Any) -> type[Any]:
    return _kind_of(_type_of(column))


def _has_zone(type_: Any) -> bool:
    return bool(getattr(type_, "timezone", False))


def _fits(number: int) -> bool:
    """Whether databases have integers of that size."""
    return -(2**63) <= number < 2**63


def _is_large(text: str) -> bool:
    """Whether a text is an integer that is sent so, since browsers would read another number."""
    return re.fullmatch("-?[1-9][0-9]{15,18}", text) is not None and abs(int(text)) > MAX_SAFE_INTEGER


def _to_column(field: str, column: Any, value: Any) -> Any:
    """A field's value as the column's type takes it. Raises Reject("invalid")."""
    type_ = _type_of(column)
    if value is None:
        if not _is_nullable(column):
            raise invalid(field, "must not be null")
        return sa.null() if isinstance(type_, sa.JSON) else None
    if not _is_decorated(column, "process_bind_param"):
        return _converted(field, type_, value)
    refusal = None
    try:
        value = _converted(field, type_, value)
    except Reject as error:
        refusal = error  # unless the decorator takes it
    try:
        written = column.type.process_bind_param(value, _DIALECT)
    except Exception:  # noqa: BLE001 - it is the application's
        raise refusal or invalid(field, f"is {shorten(value)}, which its column does not take") from None
    if written is not None:
        _converted(field, type_, written)
    return value


def _converted(field: str, type_: Any, value: Any) -> Any:
    if isinstance(type_, sa.JSON):
        return value
    if isinstance(type_, sa.Enum):
        return _to_enum(field, type_, value)
    kind = _kind_of(type_)
    try:
        if kind is datetime.datetime and isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        elif kind in (datetime.date, datetime.time) and isinstance(value, str):
            value = kind.fromisoformat(value)
        elif kind is datetime.timedelta and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = datetime.timedelta(seconds=value)
        elif kind is uuid.UUID and isinstance(value, str):
            return uuid.UUID(value)
        elif kind is decimal.Decimal and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return _finite(decimal.Decimal(str(value)))
        elif kind is int and isinstance(value, str) and _is_large(value):
            value = int(value)
    except (ValueError, ArithmeticError):
        raise invalid(field, f"is {shorten(value)}, expected {kind.__name__}") from None
    if kind in (datetime.datetime, datetime.time) and isinstance(value, kind):
        try:
            return _in_zone(field, type_, value)
        except OverflowError:
            raise invalid(
                field, f"is {shorten(value.isoformat())}, which in UTC is before year 1 or after 9999"
            ) from None
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is int and type(value) is int and not _fits(value):
        raise invalid(field, "is an integer of more than 64 bits")
    if kind is not object and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise invalid(field, f"is {shorten(value)}, expected {kind.__name__}")
    length = getattr(type_, "length", None)
    if isinstance(value, str) and length is not None and len(value) > length:
        raise invalid(field, f"has {len(value)} characters; {length} may be")
    return value


def _in_zone(field: str, type_: Any, value: Any) -> Any:
    """A time with a zone where the column has one: none is UTC there. A column without one would lose it."""
    if _has_zone(type_):
        if isinstance(value, datetime.time):
            return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)
        return (value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    if value.tzinfo is not None:
        raise invalid(
            field,
            f"is {shorten(value.isoformat())}, with a time zone that its column cannot keep; expected one without, or "
            "make the column DateTime(timezone=True)",
        )
    return value


def _finite(value: decimal.Decimal) -> decimal.Decimal:
    if not value.is_finite():
        raise ValueError
    return value


def _to_enum(field: str, kind: sa.Enum, value: Any) -> Any:
    for member, told in _members(kind).items():
        if member is value or equal(told, value):
            return member
    raise invalid(field, f"is {shorten(value)}, expected one of {', '.join(map(str, kind.enums))}")


def _members(kind: sa.Enum) -> dict[Any, Any]:
    """The values of an enumeration, and how each is sent."""
    if kind.enum_class is None:
        return {it: it for it in kind.enums}
    return {member: member.value for member in kind.enum_class}


def _plain_enum(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _from_column(column: Any, value: Any) -> Any:
    """A column's value as JSON has it, so that a record reads the same from every store."""
    if isinstance(value, datetime.datetime):
        if _has_zone(_type_of(column)):  # SQLite gives back what was written, which was UTC
            value = value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
        return value.isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, enum.Enum):
        return value.value
    if type(value) is int and abs(value) > MAX_SAFE_INTEGER:
        return str(value)  # browsers would read another number
    if isinstance(value, decimal.Decimal):
        return str(_finite(value))
    return str(value) if isinstance(value, uuid.UUID) else value


def layout_of(table: sa.Table | type[Any]) -> Columns:
    """The layout of a table, of a mapped class, or of a table made after a schema."""
    if isinstance(table, sa.Table):
        return Columns(table, {str(name): column for name, column in table.columns.items()})
    mapper = sa.inspect(table, raiseerr=False)
    if mapper is None or not hasattr(mapper, "local_table"):
        return _layout_of_schema(table)
    own = mapper.local_table
    if not isinstance(own, sa.Table):
        raise ValueError(f"SQLStore got {table.__name__}, which is mapped to {own}, expected a table.")
    return Columns(own, {attr.key: attr.columns[0] for attr in mapper.column_attrs if attr.columns[0].table is own})


def _layout_of_schema(schema: type[Any]) -> Columns:
    layout = layout_of(table_of(schema))
    if _is_text(layout.id):  # whose order is not that of the primary key's index
        layout.indexes = [sa.Index(f"ix_{layout.table.name}_id"[:63], *map(Grouping, layout.place("id")))]
    return layout


class _DecimalText(sa.types.TypeDecorator[decimal.Decimal]):
    """A decimal as text, for SQLite, whose numbers have 64 bits and would lose digits."""

    impl = sa.Text
    cache_ok = True

    @property
    def python_type(self) -> type[decimal.Decimal]:
        return decimal.Decimal

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Any) -> decimal.Decimal | None:
        return None if value is None else decimal.Decimal(str(value))


_TYPES: Mapping[Any, Any] = {
    str: sa.Text(),
    int: sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    float: sa.Float(53),
    bool: sa.Boolean(),
    datetime.datetime: sa.DateTime(timezone=True),
    datetime.date: sa.Date(),
    datetime.time: sa.Time(),
    uuid.UUID: sa.Uuid(),
    decimal.Decimal: sa.Numeric().with_variant(_DecimalText(), "sqlite"),
}

NOTHING = (None, dataclasses.MISSING)  # defaults that leave a column NULL, or must be named


def table_of(schema: type[Any], name: str | None = None, metadata: sa.MetaData | None = None) -> sa.Table:
    """A table with a column for each field of a dataclass, TypedDict, msgspec.Struct or pydantic model.

    `str`, `int`, `float`, `bool`, dates, times, `UUID`, enums and `Decimal` become columns of their kind, pydantic's
    own texts such as `HttpUrl` become texts, `| None` allows NULL, everything else is JSON. `id` is the primary key.
    name: the table's, else the schema's in lower case. Columns are named as the record is sent, and have the schema's
    defaults. Raises ValueError for a schema without an `id`, TypeError for what is no schema.
    """
    fields = fields_of(typing.cast(Any, schema))
    if fields is None:
        raise TypeError(f"table_of got {schema!r}, expected a dataclass, TypedDict, msgspec.Struct or pydantic model.")
    if not any(field.name == "id" for field in fields):
        raise ValueError(
            f"table_of got {schema.__name__}, which has no field `id`, expected one for the primary key, such as "
            "`id: int | None = None`."
        )
    columns = [_column_of(field) for field in fields]
    return sa.Table(name or snake_case(schema.__name__), sa.MetaData() if metadata is None else metadata, *columns)


def _column_of(field: Field) -> sa.Column[Any]:
    hint = _unannotated(field.type)
    kinds = {_unannotated(it) for it in typing.get_args(hint)} if _is_union(hint) else {hint}
    nullable = type(None) in kinds or (not field.required and field.factory is None and field.default in NOTHING)
    kinds -= {type(None)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if field.name == "id":
        return sa.Column("id", _TYPES[kind if kind in (str, int, uuid.UUID) else str], primary_key=True)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        type_: Any = sa.Enum(kind, native_enum=False, values_callable=lambda them: [str(it.value) for it in them])
    else:
        type_ = _TYPES.get(kind) or (sa.Text() if is_pydantic_text(kind) else sa.JSON())
    return sa.Column(field.name, type_, nullable=nullable, default=_default_of(field, type_))


def _default_of(field: Field, type_: Any) -> Any:
    """A column's default: a value, or a function that makes one."""

    def as_kept(value: Any) -> Any:
        return orjson.loads(encode(value)) if isinstance(type_, sa.JSON) else value

    make = field.factory
    if make is None:
        return None if field.default in NOTHING else as_kept(field.default)
    return as_kept(make()) if make in (dict, frozenset, list, set, tuple) else lambda: as_kept(make())


def _unannotated(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def snake_case(name: str) -> str:
    """A model's name as a table's: `ChatMessage` is `chat_message`."""
    return re.sub(r"\W", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()
