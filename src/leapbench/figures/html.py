"""Everything under results/tables and results/figures as one page, results/report.html, that needs no other file.

It is made from what is committed, the written tables, their csv and the figures, so whoever has these has the page. A
shown number is a link to the row of the csv that it comes from; the page has the csv too.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from leapbench.figures import slug
from leapbench.figures.report import RUNS, SUITE_PAGE, figure_name
from leapbench.figures.style import DPI
from leapbench.records.rows import RecordError
from leapbench.tables import PER_SEED, equivalent
from leapbench.tables.sources import NUMBER, Body, Csv, read_csv, trace
from leapbench.tables.written import Section, Written, read_written

PAGE = "report.html"
HEADLINE = equivalent.NAME  # stands before all suites
ALL_OPEN = 120  # rows of a table up to which none of its sections is folded
FIRST_OPEN = 60  # rows of the first section up to which it is not folded
COLOURS = 128  # of a figure: enough for its lines and their edges
CSS_DPI = 96


@dataclass(frozen=True)
class Picture:
    """A figure for the page; width and height in pixels of the screen."""

    path: Path
    alt: str
    data: str
    width: int
    height: int


@dataclass
class Shown:
    """One table of the page.

    Attributes:
        id: its place in the page.
        rows: what the places of its csv's rows begin with; their number follows.
        written: its text.
        source: its csv.
        summary: one line, or nothing.
        figures: of the same name, by the place of the section before which they stand.
    """

    id: str
    rows: str
    written: Written
    source: Csv
    summary: str = ""
    figures: dict[int, list[Picture]] = field(default_factory=dict)

    @property
    def csv(self) -> str:
        """The place of its csv."""
        return f"{self.id}.csv"

    @property
    def sections(self) -> list[Section]:
        """Those with a heading."""
        return self.written.sections[1:]

    @property
    def open(self) -> int:
        """How many of its sections are not folded, from the first."""
        lengths = [len(section.body.rows) if section.body else 0 for section in self.sections]
        return len(lengths) if sum(lengths) <= ALL_OPEN else int(lengths[0] <= FIRST_OPEN)

    def cell(self, body: Body, row: int, place: int) -> Markup:
        """A cell as HTML, its numbers as links."""
        text, sources = body.rows[row][place], body.sources[row][place]
        if not sources:  # the numbers of a name lead nowhere
            return escape(text)
        if len(set(sources)) == 1:
            return self._link(text, sources[0])
        parts, at = [], 0
        for number, source in zip(NUMBER.finditer(text), sources, strict=True):
            parts += [escape(text[at : number.start()]), self._link(number[0], source)]
            at = number.end()
        return Markup("").join([*parts, escape(text[at:])])

    def _link(self, text: str, row: int | None) -> Markup:
        place = self.csv if row is None else f"{self.rows}{row + 1}"
        return Markup('<a href="#{}">{}</a>').format(place, text)


@dataclass
class SuitePart:
    """One suite of the page.

    Attributes:
        name: its folder's.
        runs: what its own page says of the runs, if it has one.
        tables: in the order of its own page.
        figures: those that belong to no table.
    """

    name: str
    runs: Shown | None
    tables: list[Shown]
    figures: list[Picture]


def write_page(out: Path) -> tuple[Path, list[SuitePart]]:
    """Write out/report.html from out/tables and out/figures; returns its path and what it shows.

    Raises:
        RecordError: there is no table, a table has no csv, or a file cannot be used.
    """
    suites = read_suites(out)
    headline = [table for suite in suites for table in suite.tables if table.source.path.stem == HEADLINE]
    environment = Environment(
        loader=PackageLoader("leapbench.figures", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(suites=suites, headline=headline)
    path = out / PAGE
    path.write_text(page, encoding="utf-8")
    return path, suites


def read_suites(out: Path) -> list[SuitePart]:
    """Every suite under out/tables, by name, with the sources of its numbers.

    Raises:
        RecordError: as for :func:`write_page`.
    """
    folders = sorted({path.parent for path in (out / "tables").glob("*/*.csv")})
    if not folders:
        raise RecordError(f"{out / 'tables'}: no tables to show; make tables report writes those of the runs")
    numbers = count(1)
    return [_suite(folder, out / "figures" / folder.name, numbers) for folder in folders]


def _suite(folder: Path, figures: Path, numbers: Iterator[int]) -> SuitePart:
    page = folder / SUITE_PAGE
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    said = frozenset(text.splitlines())
    summaries = dict(re.findall(r"\((\w+)\.csv\): (.*)$", text, re.MULTILINE))
    csvs = {path.stem: path for path in sorted(folder.glob("*.csv")) if not path.stem.endswith(PER_SEED)}
    order = {name: place for place, name in enumerate([*summaries, *(name for name in csvs if name not in summaries)])}
    ids = {name: f"{folder.name}.{name}" for name in csvs}
    anchors = {f"{name}.csv": f"{place}.csv" for name, place in ids.items()}
    anchors |= {f"{name}.md": place for name, place in ids.items()}
    pictures = _pictures(figures, text)
    suite = SuitePart(folder.name, None, [], [])
    for path in sorted(folder.glob("*.md")):
        if path != page and path.stem not in csvs:
            raise RecordError(f"{path}: no {path.stem}.csv beside it; make the tables again")
    for name in sorted(csvs, key=lambda name: order[name]):
        written = csvs[name].with_suffix(".md")
        shown = Shown(ids[name], f"c{next(numbers)}r", Written(name, [Section("")]), read_csv(csvs[name]))
        if csvs[name].name == RUNS and text:
            sections = [section for section in read_written(page, anchors=anchors).sections if section.body]
            shown.written, suite.runs = Written("Runs", [Section(""), *sections]), shown
            _count(sections)
            continue
        if written.is_file():
            shown.written, shown.summary = read_written(written, said, anchors), summaries.get(name, "")
            own = [picture for picture in pictures if picture.path.stem.partition("__")[0] == name]
            pictures = [picture for picture in pictures if picture not in own]
            for picture in own:
                shown.figures.setdefault(_place(picture, shown.sections), []).append(picture)
            trace([section.body for section in shown.sections if section.body], shown.source)
        suite.tables.append(shown)
    suite.figures = pictures
    return suite


def _count(sections: list[Section]) -> None:
    """Counts of rows come from the csv as a whole."""
    for body in (section.body for section in sections if section.body):
        body.sources = [[[None] * len(NUMBER.findall(cell)) for cell in cells] for cells in body.rows]


def _place(picture: Picture, sections: list[Section]) -> int:
    """The first section of the workload that a figure shows; the first of all where no section is named like it."""
    workload = picture.path.stem.partition("__")[2]
    headings = [f"{slug(section.heading)}_" for section in sections]
    return next((at for at, heading in enumerate(headings) if heading.startswith(f"{workload}_")), 0)


def _pictures(folder: Path, text: str) -> list[Picture]:
    """The figures of a suite, those first that its own page shows, in its order."""
    shown = [Path(link).name for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)]
    place = {name: at for at, name in enumerate(shown)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (place.get(path.name, len(shown)), path.name))
    return [shrunk(path) for path in paths]


def shrunk(path: Path) -> Picture:
    """A figure with as few bytes as its lines need: COLOURS colours, lossless webp.

    Raises:
        RecordError: it is no image.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise RecordError(f"{path}: no image that can be read; make report draws it again") from error
    width, height = (round(size * CSS_DPI / DPI) for size in image.size)
    written = io.BytesIO()
    few = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
    few.save(written, "webp", lossless=True, method=2, quality=40)
    data = f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
    return Picture(path, figure_name(path), data, width, height)
