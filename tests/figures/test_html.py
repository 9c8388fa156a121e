"""results/report.html: it shows what the tables say, every number leads to its csv row, and nothing is fetched."""

import base64
import csv
import fnmatch
import html.parser
import io
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers import script
from leapbench.figures import html as page_of
from leapbench.figures.html import Picture, shrunk, write_page
from leapbench.names import PROJECT
from leapbench.records.rows import RecordError
from leapbench.tables import Table
from leapbench.tables.render import markdown, sections
from leapbench.tables.sources import NUMBER, prints, read_csv

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br", "hr", "link", "input"}


# ---- reading the page ------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    tag: str
    scope: str | None
    text: str = ""
    links: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Shown:
    """A table of the page: `section` is the id of what it stands in."""

    section: str
    caption: str = ""
    rows: list[list[Cell]] = field(default_factory=list)


class Reader(html.parser.HTMLParser):
    """Tables, places, links, pictures, and the lines of the csv, of a page whose tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.alts = [], [], [], [], []
        self.tables: list[Shown] = []
        self.lines: dict[str, str] = {}  # place of a csv row -> its line
        self.heads: dict[str, str] = {}  # place of a csv -> its head
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self.open.append((tag, values.get("id")))
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        self.alts += [values.get("alt")] if tag == "img" else []
        if tag == "table":
            self.tables.append(Shown(self.inside("section")))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append(Cell(tag, values.get("scope")))
        if tag == "a" and self.inside("td", "th"):
            self.tables[-1].rows[-1][-1].links.append(("", values["href"]))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        tag, place = self.open[-1] if self.open else (None, None)
        inside = [name for name, _ in self.open]
        if tag == "caption":
            self.tables[-1].caption += data
        if tag == "span" and "pre" in inside:
            self.lines[place] = self.lines.get(place, "") + data
        if tag == "b" and "pre" in inside:
            self.heads[next(place for name, place in reversed(self.open) if name == "details")] = data
        if "td" in inside or "tr" in inside:
            cell = self.tables[-1].rows[-1][-1]
            cell.text += data
            if tag == "a":
                cell.links[-1] = (cell.links[-1][0] + data, cell.links[-1][1])

    def inside(self, *tags):
        return next((place or name for name, place in reversed(self.open) if name in tags), None)


def stub(path: Path) -> Picture:
    return Picture(path, path.stem, "data:,", 1, 1)


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Reader:
    """The page of the committed suites, without the pixels of their figures."""
    out = tmp_path_factory.mktemp("results")
    for room in ("tables", "figures"):
        (out / room).symlink_to(PROJECT / "results" / room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_of, "shrunk", stub)
        path, _ = write_page(out)
    return Reader(path.read_text(encoding="utf-8"))


def written(path: Path) -> list[tuple[str, list[list[str]]]]:
    """(heading, rows of cells, the first of them the head) of every table of a markdown file."""
    found, heading, before = [], "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:]
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append((heading, []))
            if not re.fullmatch(r"[|:\- ]+-[|:\- ]+", line):
                found[-1][1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return found


def fields(line: str) -> list[str]:
    return next(csv.reader([line]))


def numbers_in(cell: str) -> list[str]:
    """The words of a cell that are numbers: of `30-33` both, of `gpt2`, `K=5`, `ema_fixed/0.9` and `0e12ab` none."""
    words = re.sub(r"(?<=\d)-(?=\d)", " ", cell) if re.fullmatch(r"\d+-\d+", cell) else cell
    words = [word.replace(",", "") for word in re.split(r"[\s\[\]()±]|(?<=\d)/|,(?!\d)", words)]
    return [word for word in words if re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", word)]


def has(value: str, word: str) -> bool:
    """Whether a value of a csv, of six digits, is `word` when it is rounded to as many."""
    try:
        number = float(value)
    except ValueError:
        return False
    digits, _, exponent = word.partition("e")
    places = len(digits.partition(".")[2])
    scale = 10.0 ** int(exponent or 0)
    near = [number, number * (1 + 6e-6), number * (1 - 6e-6)]
    return any(abs(round(each / scale, places) - float(digits)) < 1e-9 * max(1, abs(float(digits))) for each in near)


# ---- the committed suites --------------------------------------------------------------------------------------------


def test_every_number_of_every_committed_table_leads_to_its_csv_row(committed, record_property):
    """To a row that has it to the printed digits and is of the shown row, or, where none has it, to the csv."""
    by_section = {}
    for table in committed.tables:
        by_section.setdefault(table.section, []).append(table)
    count = {"row": 0, "csv": 0}
    for path in sorted((PROJECT / "results/tables").glob("*/*.md")):
        if path.name == "README.md":
            continue
        place = f"{path.parent.name}.{path.stem}"
        tables, texts = by_section.pop(place), written(path)
        assert [[[cell.text for cell in row] for row in table.rows] for table in tables] == [rows for _, rows in texts]
        columns = fields(committed.heads[f"{place}.csv"])
        for table, (heading, (head, *_)) in zip(tables, texts, strict=True):
            for row in table.rows[1:]:
                for name, cell in zip(head, row, strict=True):
                    words = numbers_in(cell.text)
                    assert len(words) == len([w for text, _ in cell.links for w in numbers_in(text)]), (place, cell)
                    for text, link in cell.links:
                        where = (place, heading, row[0].text, name, cell.text)
                        if link == f"#{place}.csv":
                            count["csv"] += len(numbers_in(text))
                            continue
                        count["row"] += len(numbers_in(text))
                        source = dict(zip(columns, fields(committed.lines[link[1:]]), strict=True))
                        assert all(any(has(v, w) for v in source.values()) for w in numbers_in(text)), (where, source)
                        assert same_cell(source, heading, head, row, name), (where, source)
    record_property("links to rows", count["row"])
    record_property("links to a whole csv", count["csv"])
    print(f"{count['row']} numbers lead to a row of a csv, {count['csv']} to a whole csv")
    assert count["row"] > 10_000 and count["csv"] < count["row"] / 100, count
    assert all(place.endswith(".runs") for place in by_section)


def same_cell(source: dict[str, str], heading: str, head: list[str], row: list[Cell], column: str) -> bool:
    """Whether the csv row is of the section, the names and the K that the cell stands at."""
    words = re.split(r"[, ]+", heading)
    keys = {key: source[key] for key in ("model", "dataset", "total_steps", "protocol", "rule") if source.get(key)}
    if "protocol" not in heading:
        keys.pop("protocol", None)
    if "rule" not in heading:
        keys.pop("rule", None)
    names = {"method": "row"} | {name: name for name in ("regime", "predictor", "protocol", "rule", "link", "depth")}
    shown = {
        names[name]: cell.text.split(", published")[0].removesuffix(" (control)")
        for name, cell in zip(head, row, strict=True) if name in names and names[name] in source
    }  # fmt: skip
    if column.startswith("K="):
        shown["K"] = column[2:]
    return all(value in words for value in keys.values()) and all(source[name] == text for name, text in shown.items())


def test_a_cell_of_time_to_baseline_leads_to_its_reference_and_definition(committed):
    expected = {
        "steps": ("tuned", "ours"), "charged": ("tuned", "ours"), "p (Holm)": ("tuned", "ours"),
        "charged, to same schedule": ("schedule", "ours"), "charged, to published-style": ("published", "ours"),
        "pdt loss": ("tuned", "pdt_loss"), "pdt total": ("tuned", "pdt_loss_total"),
        "pdt accuracy": ("tuned", "pdt_accuracy"), "best validation loss": ("tuned", "ours"),
    }  # fmt: skip
    place = "ttb_embedded.time_to_baseline"
    columns, checked = fields(committed.heads[f"{place}.csv"]), 0
    for table in committed.tables:
        if table.section != place:
            continue
        head, *rows = table.rows
        for row in rows:
            for name, cell in zip(head, row, strict=True):
                for _, link in cell.links:
                    if name.text in expected and link != f"#{place}.csv":
                        source = dict(zip(columns, fields(committed.lines[link[1:]]), strict=True))
                        found = (source["reference"].replace("plain", "tuned"), source["definition"])
                        assert found == expected[name.text], (table.caption, row[0].text, name.text)
                        checked += 1
    assert checked > 300


def test_every_link_leads_somewhere_in_the_page_and_nothing_is_fetched(committed):
    assert len(committed.ids) == len(set(committed.ids))
    assert {link for link in committed.links if not link.startswith("#")} == set()
    assert {link[1:] for link in committed.links} <= set(committed.ids)
    assert {source.partition(",")[0] for source in committed.sources} == {"data:"}
    assert all(committed.alts) and len(committed.alts) == len(list((PROJECT / "results/figures").glob("*/*.png")))


def test_every_table_can_be_heard(committed):
    assert len({table.caption for table in committed.tables}) == len(committed.tables)
    for table in committed.tables:
        head, *rows = table.rows
        assert table.caption and all((cell.tag, cell.scope) == ("th", "col") for cell in head)
        assert all(any((cell.tag, cell.scope) == ("th", "row") for cell in row) for row in rows), table.caption


def test_every_committed_csv_is_in_the_page_as_it_is(committed):
    for path in (PROJECT / "results/tables").glob("*/*.csv"):
        if path.stem.endswith("_cells"):
            continue
        source = read_csv(path)
        text = path.read_text(encoding="utf-8")
        assert "\n".join([source.head, *source.lines]) + "\n" == text
        assert committed.heads[f"{path.parent.name}.{path.stem}.csv"] == source.head
        assert not source.lines or source.lines[-1] in committed.lines.values()


def test_a_figure_is_smaller_and_looks_the_same():
    for path in sorted((PROJECT / "results/figures").glob("*/*.png"))[::20]:
        picture = shrunk(path)
        with Image.open(path) as image:
            before = np.asarray(image.convert("RGB")).astype(int)
        with Image.open(io.BytesIO(base64.b64decode(picture.data.partition(",")[2]))) as image:
            after = np.asarray(image.convert("RGB")).astype(int)
        assert len(picture.data) < 0.6 * path.stat().st_size, path
        assert before.shape == after.shape and np.abs(before - after).max() <= 48
        assert picture.alt and picture.width < before.shape[1]


# ---- a suite of its own ----------------------------------------------------------------------------------------------

ROWS = [  # method, kind, factor as shown, factor, low, high, least, most
    ("plain training", "baseline", "1.000", 1, None, None, 0.348, 2.1),
    ("plain training, other seeds", "control", "1.000", 1, None, None, 0.348, 2.1),
    ("trend strict", "method", "1.120 [1.030, 1.210]", 1.12, 1.03, 1.21, 0.348, 2.1),
    ("average strict", "control", "1.903 [1.700, > 2.100]", 1.903, 1.7, None, 0.348, 2.1),
    ("pdt always", "method", "< 0.348", None, None, None, 0.348, 2.1),
    ("dmd strict", "method", "missing", None, None, None, 0.348, 2.1),
]


def factors(part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    shown = {row[0]: row[2] for row in ROWS}
    names = part["row"] + part["kind"].map({"control": " (control)"}).fillna("")
    return pd.DataFrame({"method": names, "seeds": part["n_seeds"].astype(str), "factor": part["row"].map(shown)})


def write_suite(out: Path, name: str, *tables: str) -> None:
    """Tables of these names, as the tables write them: a section with a training of each of two learning rates."""
    key = {"model": "gpt2_nano", "dataset": "stdlib", "optimizer": "adamw"}
    rows = [
        {**key, "lr": lr, "setting": "", "row": row, "kind": kind, "n_seeds": seeds, "factor_charged": value,
         "ci_low": low, "ci_high": high, "least": least, "most": most}
        for seeds, lr in ((3, 0.001), (5, 0.002)) for row, kind, _, value, low, high, least, most in ROWS
    ]  # fmt: skip
    folder = out / "tables" / name
    folder.mkdir(parents=True)
    for table in tables:
        made = Table(
            table, f"The {table}", pd.DataFrame(rows), "What <is> shown.", "", list(rows[0])[:5], body=factors,
            problems=[],
        )  # fmt: skip
        made.frame.to_csv(folder / f"{table}.csv", index=False)
        text = markdown(made, name, {"Not counted": ["failed: run 7"]}, sections(made))
        (folder / f"{table}.md").write_text(text, encoding="utf-8")


def test_a_table_that_nobody_has_thought_of(tmp_path):
    write_suite(tmp_path, "s", "new_table")
    page = Reader(write_page(tmp_path)[0].read_text(encoding="utf-8"))
    assert [table.caption for table in page.tables] == [
        f"The new_table of s: gpt2_nano, stdlib, adamw lr {lr}" for lr in (0.001, 0.002)
    ]
    columns = fields(page.heads["s.new_table.csv"])
    for table, lr in zip(page.tables, ("0.001", "0.002"), strict=True):
        assert [row[2].text for row in table.rows[1:]] == [row[2] for row in ROWS]
        for row in table.rows[1:]:
            links = [link for cell in row for _, link in cell.links]
            assert len(links) == (1 if row[2].text == "missing" else 2)
            for link in links:
                source = dict(zip(columns, fields(page.lines[link[1:]]), strict=True))
                assert (source["lr"], source["row"]) == (lr, row[0].text.removesuffix(" (control)"))


def test_the_headline_stands_before_the_suites(tmp_path):
    write_suite(tmp_path, "a", "new_table")
    write_suite(tmp_path, "b", "new_table", "equivalent_budget")
    text = write_page(tmp_path)[0].read_text(encoding="utf-8")
    order = ["headline", "b.equivalent_budget", "a", "a.new_table", "b", "b.new_table"]
    places = [text.index(f'id="{name}"') for name in order]
    assert places == sorted(places) and text.count('id="b.equivalent_budget"') == 1


def test_what_the_suite_says_of_its_runs_is_said_once(tmp_path):
    write_suite(tmp_path, "s", "new_table")
    assert "failed: run 7" in write_page(tmp_path)[0].read_text(encoding="utf-8")
    folder = tmp_path / "tables/s"
    (folder / "runs.csv").write_text("run_id,status\n7,failed\n8,completed\n")
    (folder / "README.md").write_text(
        "# Suite s\n\n## Runs\n\nOne line each: [runs.csv](runs.csv).\n\n"
        "| status | runs |\n|:--|--:|\n| failed | 1 |\n\nNot counted:\n\n- failed: run 7\n\n"
        "## Tables\n\n- The new: [md](new_table.md), [csv](new_table.csv): ten rows\n"
    )
    text = write_page(tmp_path)[0].read_text(encoding="utf-8")
    page = Reader(text)
    assert text.count("failed: run 7") == 1 and "ten rows" in text and "What &lt;is&gt; shown." in text
    assert page.tables[0].rows[1][1].links == [("1", "#s.runs.csv")] and "#s.runs.csv" in page.links


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "value", "is_it"),
    [("1,234", 1233.6, True), ("1,234", 1232.4, False), ("0.87", 0.8651, True), ("0.87", 0.8649, False),
     ("1.15e+06", 1148000.0, True), ("1.15e+06", 1138000.0, False), ("-0.0035", -0.00352, True), ("5", 5, True),
     ("5", 6, False), ("0.0", 0.0, True), ("0.125", 0.125, True), ("4.75e+33", 4.7512e33, True),
     ("5", np.inf, False), ("5", np.nan, False)],
)  # fmt: skip
def test_a_number_is_found_to_its_digits(shown, value, is_it):
    assert prints(shown, np.array([value], float))[0] == is_it


def test_what_counts_as_a_number():
    cells = {
        "0.0 ± 0.0 [0.0, 6.2]": ["0.0", "0.0", "0.0", "6.2"], "30-33": ["30", "33"], "1 + 4 diverged": ["1", "4"],
        "-0.5 [-1,234, 2.0e-05]": ["-0.5", "-1,234", "2.0e-05"], "not reached (3 of 5)": ["3", "5"],
        "< 0.348": ["0.348"], "10.0 / 10.0": ["10.0", "10.0"], "0.1 (tuned)": ["0.1"],
        "pdt always K=10 lr=0.4": [], "gpt2-124m": [], "26e6249f3284": [], "code_float32": [], "0.3.1": [],
    }  # fmt: skip
    assert {cell: NUMBER.findall(cell) for cell in cells} == cells


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path):
    def said(out: Path) -> str:
        with pytest.raises(RecordError) as error:
            write_page(out)
        return str(error.value)

    assert "no tables to show" in said(tmp_path / "none")
    write_suite(tmp_path, "s", "new_table")
    folder = tmp_path / "tables/s"
    (folder / "other.md").write_text("# Other\n")
    assert said(tmp_path) == f"{folder / 'other.md'}: no other.csv beside it; make the tables again"
    (folder / "other.csv").write_text("a,b\n1,2\n3\n")
    assert said(tmp_path) == f"{folder / 'other.csv'}:3: 1 cells where there are 2 columns"
    (folder / "other.csv").write_text("")
    assert said(tmp_path) == f"{folder / 'other.csv'}: empty; make the tables again"
    (folder / "other.csv").write_text('a,b\n"one\nof two",2\n')
    assert read_csv(folder / "other.csv").lines == ['"one\nof two",2']
    figures = tmp_path / "figures/s"
    figures.mkdir(parents=True)
    (figures / "x.png").write_bytes(b"no image")
    assert said(tmp_path) == f"{figures / 'x.png'}: no image that can be read; make report draws it again"
    assert not (tmp_path / "report.html").exists()


def test_a_fresh_copy_without_runs_has_its_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no suites here" in str(script(monkeypatch, "report").status)
    write_suite(tmp_path / "results", "s", "new_table")
    end = script(monkeypatch, "report")
    assert (end.status, end.err) == (0, "")
    assert end.out.splitlines() == [
        "results/raw: no runs; the page shows the tables that are there",
        "results/report.html: 1 tables, 0.0 MB",
    ]
    assert (tmp_path / "results/report.html").is_file()
    assert "no suites here" in str(script(monkeypatch, "report", "--results", "elsewhere").status)


def test_the_files_of_the_page_are_installed_with_the_package():
    patterns = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = PROJECT / "src/leapbench/figures"
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("report.*") if path.suffix != ".py"]
    files = [name for name in files if "__pycache__" not in name]
    assert len(files) == 3
    assert all(any(fnmatch.fnmatch(name, p) for p in patterns["leapbench.figures"]) for name in files)


# ---- in a browser ----------------------------------------------------------------------------------------------------

CLICKS = """
const shown = () => [...document.querySelector("tbody").rows].map((row) => row.cells[2].textContent);
const head = document.querySelectorAll("thead th")[2], found = {written: shown()};
const cell = document.querySelectorAll("tbody tr")[0].cells[2];
const add = %s;
for (const text of add) {
  const row = cell.parentNode.cloneNode(true);
  row.cells[2].textContent = text;
  document.querySelector("tbody").append(row);
}
for (const order of ["ascending", "descending", "again"]) {
  head.querySelector("button").click();
  found[order] = shown();
  found[order + " sort"] = head.getAttribute("aria-sort");
}
const link = [...document.querySelectorAll("td a")].find((a) => a.textContent.startsWith("1.120"));
const target = document.getElementById(link.hash.slice(1)), details = target.closest("details");
found.folded = !details.open;
addEventListener("hashchange", () => {
  found.unfolded = details.open;
  found.line = target.textContent;
  found.marked = [...document.querySelectorAll(".record mark")].map((mark) => mark.previousSibling.textContent);
  const result = document.createElement("output");
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
link.click();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_columns_sort_and_rows_unfold_in_a_browser(tmp_path):
    write_suite(tmp_path, "s", "new_table")
    path, _ = write_page(tmp_path)
    more = [
        "not reached (3 of 5)",
        "not reached (0 of 5)",
        "1,234",
        "-0.5 [-0.9, -0.1]",
        "",
        "> 2.000",
        "2.000",
        "0.348",
    ]
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace("</body>", f"<script>{CLICKS % json.dumps(more)}</script></body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search(r"<output>(.*?)</output>", done.stdout)[1].replace("&lt;", "<").replace("&gt;", ">"))
    written = [row[2] for row in ROWS]
    ascending = [
        "-0.5 [-0.9, -0.1]", "< 0.348", "0.348", "1.000", "1.000", "1.120 [1.030, 1.210]", "1.903 [1.700, > 2.100]",
        "2.000", "> 2.000", "1,234", "not reached (3 of 5)", "not reached (0 of 5)",
    ]  # fmt: skip
    assert found["written"] == written
    assert found["ascending"] == [*ascending, "missing", ""] and found["ascending sort"] == "ascending"
    assert found["descending"] == [*reversed(ascending), "missing", ""] and found["descending sort"] == "descending"
    assert found["again"] == [*written, *more] and found["again sort"] is None
    assert found["folded"] and found["unfolded"] and "trend strict" in found["line"]
    assert found["marked"] == ["factor_charged", "ci_low", "ci_high"]
