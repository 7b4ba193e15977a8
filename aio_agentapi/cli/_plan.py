"""
Plans of points in files: CSV with a header line, or JSON Lines.

The whole file is checked in one pass before anything is sent. Memory does not grow
with it: references that must not stand twice are remembered in a temporary file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, Literal, Self, TypeAlias, cast

import attrs

from aio_agentapi import PlanRow
from aio_agentapi._types import exact
from aio_agentapi.errors import AmountError, UsageError

Form: TypeAlias = Literal["csv", "jsonl"]

_NEEDED: Final = frozenset({"agent_code", "amount"})
_KNOWN: Final = _NEEDED | {"reference"}
_CODE: Final = re.compile(r"[0-9]{1,19}")
_INT64: Final = 2**63
_REFERENCE: Final = re.compile(r"[!-~]{1,64}")

# Characters of a line; a sound one has about a hundred.
_LONGEST: Final = 65536

# Of what is wrong; more would hide the summary.
_LISTED: Final = 1000

_SHORT: Final = 100


class PlanError(UsageError):
    """A row of a plan, or its header, cannot be used. Nothing was sent for it."""


@attrs.frozen
class Checked:
    """
    What one pass over a plan found.

    Attributes:
        rows: How many rows are sound.

        total: The sum of their amounts.

        wrong: The first of the others: line number and reason.

        wrong_rows: How many others there are.
    """

    rows: int
    total: Decimal
    wrong: tuple[tuple[int, str], ...]
    wrong_rows: int


@attrs.define(eq=False)
class PlanFile:
    """
    A plan, copied when it is opened: what was checked is what is carried out.

    Args:
        name: What it is called in messages.

        form: CSV or JSON Lines.
    """

    name: str
    form: Form
    _file: io.TextIOWrapper = attrs.field(alias="file")

    @classmethod
    def open(cls, path: str, form: Form | None) -> Self:
        """
        Copy a plan to a temporary file, and open that; ``-`` is standard input.

        Args:
            path: A file, or ``-``.

            form: None: by the ending of the file's name, CSV for standard input.

        Raises:
            UsageError: It cannot be read, or not copied.
        """
        if form is None:
            form = "jsonl" if path.endswith((".jsonl", ".ndjson")) else "csv"
        name = "standard input" if path == "-" else path
        try:
            with contextlib.ExitStack() as stack:
                copy = stack.enter_context(tempfile.TemporaryFile())
                source = 0 if path == "-" else path
                with open(source, "rb", closefd=path != "-") as file:
                    shutil.copyfileobj(file, copy)
                copy.seek(0)
                stack.pop_all()
        except OSError as error:
            msg = f"{name}: {error.strerror}"
            raise UsageError(msg) from None
        # A byte that is no UTF-8 becomes part of a field, and the row is refused
        # with its line number; an error of the decoder would tell neither.
        text = io.TextIOWrapper(
            copy, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        return cls(name, form, text)

    def close(self) -> None:
        """Forget the copy."""
        self._file.close()

    def check(self, decimals: int | None = None) -> Checked:
        """
        Read the whole plan once and tell what is in it.

        Args:
            decimals: How many the deployment keeps of an amount. None: four.

        Raises:
            PlanError: The header is wrong, or a line too long.

            UsageError: There is no room for temporary files.
        """
        references = _References()
        wrong: list[tuple[int, str]] = []
        rows = wrong_rows = 0
        total = Decimal(0)
        try:
            for line, row in self._read():
                if isinstance(row, PlanRow):
                    row = references.unique(line, row)  # noqa: PLW2901 - sound or not
                if isinstance(row, PlanRow):
                    row = _kept(row, decimals)  # noqa: PLW2901 - as above
                if isinstance(row, PlanRow):
                    rows += 1
                    total += exact(row.amount)
                    continue
                wrong_rows += 1
                if len(wrong) < _LISTED:
                    wrong.append((line, row))
        except sqlite3.Error as error:
            msg = f"{self.name}: its references cannot be compared: {error}"
            raise UsageError(msg) from None
        finally:
            references.close()
        return Checked(rows, total, tuple(wrong), wrong_rows)

    def rows(self) -> Iterator[PlanRow]:
        """Read the rows of a plan that was checked and found sound."""
        for _, row in self._read():
            if isinstance(row, PlanRow):
                yield row

    def _read(self) -> Iterator[tuple[int, PlanRow | str]]:
        self._file.seek(0)
        lines = _lines(self._file, self.name)
        return _csv(lines, self.name) if self.form == "csv" else _jsonl(lines)


def _lines(file: io.TextIOWrapper, name: str) -> Iterator[str]:
    """Read line by line; a file without line ends must not fill the memory."""
    number = 0
    while text := file.readline(_LONGEST):
        number += 1
        if len(text) == _LONGEST:
            msg = f"{name}: line {number} is longer than {_LONGEST} characters"
            raise PlanError(msg)
        yield text


def _csv(lines: Iterator[str], name: str) -> Iterator[tuple[int, PlanRow | str]]:
    reader = csv.reader(lines, strict=True)
    header = _header(reader, name)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, f"no CSV: {error}"
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            yield (
                reader.line_num,
                f"{len(cells)} columns where the header has {len(header)}",
            )
            continue
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        yield reader.line_num, _row(reader.line_num, values)


def _header(reader: Any, name: str) -> list[str]:  # noqa: ANN401 - csv has no name for it
    try:
        header = [cell.strip() for cell in next(reader)]
    except (StopIteration, csv.Error):
        header = []
    if len(set(header)) == len(header) and set(header) >= _NEEDED:
        unknown = sorted(set(header) - _KNOWN)
        if not unknown:
            return header
        msg = f"{name}: unknown columns in the header: {unknown!r}"
        raise PlanError(msg)
    if header and header[0].startswith("{"):
        msg = f"{name}: this is JSON Lines: say --format jsonl"
        raise PlanError(msg)
    msg = (
        f"{name}: the first line names the columns, separated by commas:"
        " agent_code,amount and, if wanted, reference"
    )
    raise PlanError(msg)


def _jsonl(lines: Iterator[str]) -> Iterator[tuple[int, PlanRow | str]]:
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            members = json.loads(
                text, parse_float=Decimal, object_pairs_hook=_once, parse_constant=_once
            )
        except (ValueError, ArithmeticError, RecursionError) as error:
            yield line, f"no JSON: {error}"
            continue
        if not isinstance(members, dict):
            yield line, "no JSON object"
            continue
        values = cast("dict[str, Any]", members)
        if unknown := sorted(values.keys() - _KNOWN):
            yield line, f"unknown members: {unknown!r}"[:_SHORT]
        else:
            yield line, _row(line, values)


def _once(pairs: list[tuple[str, Any]] | str) -> dict[str, Any]:
    """Make an object whose members stand in it once; refuse NaN and its like."""
    if isinstance(pairs, str):
        msg = f"{pairs} is no number"
        raise ValueError(msg)  # noqa: TRY004 - what json raises as well
    members = dict(pairs)
    if len(members) != len(pairs):
        msg = "a member stands twice"
        raise ValueError(msg)
    return members


def _row(line: int, values: dict[str, Any]) -> PlanRow | str:
    """Return a row, or why it is none."""
    code = values.get("agent_code")
    if isinstance(code, str) and _CODE.fullmatch(code):
        code = int(code)
    if not isinstance(code, int) or isinstance(code, bool) or not 0 < code < _INT64:
        return f"agent_code is a whole number, not {str(code)[:40]!r}"
    try:
        amount = exact(values.get("amount", ""))
    except AmountError as error:
        return str(error)
    reference = values.get("reference")
    if reference is None or reference == "":
        reference = None
    elif not (isinstance(reference, str) and _REFERENCE.fullmatch(reference)):
        return "a reference is 1 to 64 visible ASCII characters"
    return PlanRow(code, amount, reference, line)


def _kept(row: PlanRow, decimals: int | None) -> PlanRow | str:
    """Return *row*, or that the deployment would round its amount."""
    try:
        exact(row.amount, decimals)
    except AmountError as error:
        return str(error)
    return row


@attrs.define(eq=False)
class _References:
    """Those that a plan has used, in a temporary file of SQLite's."""

    _sql: sqlite3.Connection | None = attrs.field(init=False, default=None)

    def unique(self, line: int, row: PlanRow) -> PlanRow | str:
        """Return *row*, or where its reference stands already."""
        if row.reference is None:
            return row
        if self._sql is None:
            self._sql = sqlite3.connect("", isolation_level=None)
            self._sql.execute("PRAGMA journal_mode = OFF")
            self._sql.execute("PRAGMA synchronous = OFF")
            self._sql.execute("CREATE TABLE seen (name TEXT PRIMARY KEY, line INTEGER)")
            self._sql.execute("BEGIN")
        added = self._sql.execute(
            "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO NOTHING",
            (row.reference, line),
        )
        if added.rowcount:
            return row
        (first,) = self._sql.execute(
            "SELECT line FROM seen WHERE name = ?", (row.reference,)
        ).fetchone()
        return f"the reference {row.reference!r} stands on line {first} already"

    def close(self) -> None:
        """Forget them."""
        if self._sql is not None:
            self._sql.close()
