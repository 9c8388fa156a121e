"""Where a shown number comes from: the row of a csv that a cell of a written table was made from.

A written table has names and rounded numbers, its csv every digit. The row of a cell is found by what the two have in
common: the heading of the section, the cells that repeat a column of the csv, the head of the column (`K=25`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from leapbench.records.rows import RecordError
from leapbench.tables.numbers import MISSING
from leapbench.tables.render import section_name

Value = str | int | float | None

NUMBER = re.compile(
    r"(?<![\w.=+-])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)"  # no part of a name: gpt2, K=5, 26e6249f
    r"|(?<=\d-)\d+(?!\w)"  # the end of 30-33
)
WRITTEN = 5e-6  # relative error of a number with the six digits of a csv
HEAD = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True)
class Csv:
    """A csv as it is written and as values.

    Attributes:
        path: the file.
        head: the line of its columns, as written.
        lines: its rows as written, without line ends.
        columns: their names.
        rows: one value per column; None where the cell is empty.
    """

    path: Path
    head: str
    lines: list[str]
    columns: list[str]
    rows: list[list[Value]]

    @cached_property
    def numbers(self) -> np.ndarray:
        """(rows, columns), NaN where there is none."""
        numbers = [[value if isinstance(value, int | float) else np.nan for value in row] for row in self.rows]
        return np.array(numbers, float).reshape(len(self.rows), len(self.columns))


@dataclass
class Body:
    """A table as it is shown, all of it text.

    Attributes:
        heading: of its section.
        head: names of the columns.
        rows: the cells.
        names: indices of the columns whose cells are names, in which no number is looked for.
        sources: for every cell, for every number in it, the row of the csv or None where it comes from no single one.
    """

    heading: str
    head: list[str]
    rows: list[list[str]]
    names: set[int] = field(default_factory=set)
    sources: list[list[list[int | None]]] = field(default_factory=list)


def read_csv(path: Path) -> Csv:
    """Read a csv with the lines that it was written in.

    Raises:
        RecordError: it is empty, or a row has not as many cells as there are columns.
    """
    with path.open(encoding="utf-8", newline="") as file:
        text = list(file)
    reader = csv.reader(text)
    lines, rows, start = [], [], 0
    for cells in reader:
        lines.append("".join(text[start : reader.line_num]).rstrip("\r\n"))
        rows.append(cells)
        start = reader.line_num
        if len(cells) != len(rows[0]):
            raise RecordError(f"{path}:{start}: {len(cells)} cells where there are {len(rows[0])} columns")
    if not rows:
        raise RecordError(f"{path}: empty; make the tables again")
    return Csv(path, lines[0], lines[1:], rows[0], [[_value(cell) for cell in row] for row in rows[1:]])


def _value(cell: str) -> Value:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None


def prints(shown: str, values: np.ndarray) -> np.ndarray:
    """Which of the values are `shown` to the digits that are printed: `1,234` for 1233.6, `1.2e+06`."""
    digits, _, exponent = shown.replace(",", "").lower().partition("e")
    scale = 10.0 ** int(exponent or 0)
    unit = scale * 10.0 ** -len(digits.partition(".")[2])
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.abs(finite - float(digits) * scale) <= (0.5 + 1e-9) * unit + WRITTEN * np.abs(finite)


def names(shown: str, value: str | None) -> bool:
    """Whether a cell names a text of the csv, or its absence; more may follow in brackets or after a comma."""
    if value is None:
        return shown in ("", "-", MISSING)
    return shown == value or shown.startswith((f"{value}, ", f"{value} ("))


def trace(bodies: Sequence[Body], source: Csv) -> None:
    """Fill in `names` and `sources` of the sections of one written table."""
    headings = {body.heading for body in bodies}
    parts = _sections(headings, source)
    if not parts and len(headings) == 1:
        parts = {heading: list(range(len(source.rows))) for heading in headings}
    for body in bodies:
        _Section(body, source, parts.get(body.heading, [])).trace()


def _sections(headings: set[str], source: Csv) -> dict[str, list[int]]:
    """Heading -> its rows: the sections of a table are named by the first columns of its csv; none if they are not."""
    for n in range(1, len(source.columns) + 1):
        rows: dict[tuple[Value, ...], list[int]] = {}
        for index, row in enumerate(source.rows):
            rows.setdefault(tuple(row[:n]), []).append(index)
        try:
            named = {section_name(dict(zip(source.columns, key, strict=False))): found for key, found in rows.items()}
        except (KeyError, ValueError, TypeError):  # the columns of a name are not all there yet
            continue
        if set(named) == headings:
            return named
    return {}


class _Section:
    """The rows of one section, looked up by the cells of its body."""

    def __init__(self, body: Body, source: Csv, rows: list[int]) -> None:
        self.body, self.source, self.rows = body, source, rows
        self.numbers = source.numbers[rows]
        self.found: dict[tuple[int, str], frozenset[int]] = {}
        rows_of = [source.rows[index] for index in rows]
        self.texts = [
            place for place in range(len(source.columns)) if any(isinstance(row[place], str) for row in rows_of)
        ]
        self.keys = {
            place: column
            for place, head in enumerate(body.head)
            if (column := self.key_of(place, head)) is not None
        }  # fmt: skip
        body.names = {place for place, column in self.keys.items() if column in self.texts}

    def trace(self) -> None:
        for cells in self.body.rows:
            candidates = self.candidates(cells)
            self.body.sources.append(
                [
                    [] if place in self.body.names else self.sources(self.body.head[place], cell, candidates)
                    for place, cell in enumerate(cells)
                ]
            )

    def matching(self, column: int, shown: str) -> frozenset[int]:
        """Rows of the section whose value in `column` is what is shown; of several names that fit the longest."""
        if (column, shown) not in self.found:
            values = ((index, self.source.rows[index][column]) for index in self.rows)
            texts = {index: value for index, value in values if not isinstance(value, int | float)}
            named = {index: len(value or "") for index, value in texts.items() if names(shown, value)}
            rows = {index for index, length in named.items() if length == max(named.values())}
            number = NUMBER.match(shown)
            if number and shown[number.end() :][:2] in ("", " ("):
                rows |= {self.rows[at] for at in prints(number[0], self.numbers[:, column]).nonzero()[0]}
            self.found[column, shown] = frozenset(rows)
        return self.found[column, shown]

    def key_of(self, place: int, head: str) -> int | None:
        """The column of the csv that a column of the body repeats: of the same name, or with the same names in it."""
        shown = [cells[place] for cells in self.body.rows if cells[place]]
        if not shown:
            return None
        if head in self.source.columns:
            column = self.source.columns.index(head)
            return column if all(self.matching(column, text) for text in shown) else None
        named = [text for text in shown if not NUMBER.match(text) and not names(text, None)]
        repeated = {column: sum(bool(self.matching(column, text)) for text in named) for column in self.texts if named}
        best = max(repeated, key=lambda column: repeated[column], default=None)
        return best if best is not None and repeated[best] > len(shown) / 2 else None

    def candidates(self, cells: list[str]) -> list[int]:
        """Rows of the csv that a row of the body can come from; none where one of its names is not in the csv."""
        rows = frozenset(self.rows)
        for place, column in self.keys.items():
            rows &= self.matching(column, cells[place])
        return sorted(rows)

    def sources(self, head: str, cell: str, candidates: list[int]) -> list[int | None]:
        """For every number of a cell the first row that has it, of those that the head of its column names best."""
        shown = [match[0] for match in NUMBER.finditer(cell)]
        if not shown:
            return []
        for name, value in HEAD.findall(head):
            if name in self.source.columns:
                rows = self.matching(self.source.columns.index(name), value)
                candidates, head = [index for index in candidates if index in rows], head.replace(f"{name}={value}", "")
        ranked = self.ranked(head, candidates)
        of_all = next((index for index in ranked if all(self.has(index, number) for number in shown)), None)
        if of_all is not None:
            return [of_all] * len(shown)
        return [next((index for index in ranked if self.has(index, number)), None) for number in shown]

    def has(self, index: int, shown: str) -> bool:
        return bool(prints(shown, self.source.numbers[index]).any())

    def ranked(self, head: str, candidates: list[int]) -> list[int]:
        """Those first whose own values, of the columns in which the candidates differ, stand in the head."""
        if len(candidates) < 2:
            return candidates
        rows = [self.source.rows[index] for index in candidates]
        differing = [column for column in range(len(self.source.columns)) if len({row[column] for row in rows}) > 1]
        score = {
            index: sum(_score(head, row[column]) for column in differing)
            for index, row in zip(candidates, rows, strict=True)
        }  # fmt: skip
        return sorted(candidates, key=lambda index: -score[index])


def _score(head: str, value: Value) -> float:
    """How well a head names a value: if most of its words stand there, their number less a tenth of the others'."""
    if isinstance(value, str):
        words, own = set(_words(head)), _words(value)
        named = sum(word in words for word in own)
        return named - 0.1 * (len(own) - named) if 2 * named > len(own) else 0.0
    shown = [] if value is None else NUMBER.findall(head)
    return float(any(prints(number, np.array([value], float)).any() for number in shown))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
