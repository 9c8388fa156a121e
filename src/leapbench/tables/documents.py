"""README.md and docs/: what of them is written from the committed csv files, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from leapbench.records.rows import RecordError
from leapbench.tables import stats
from leapbench.tables.compare import FACTOR_INTERVAL
from leapbench.tables.headline import budget_headline, leap_headline, rates_headline
from leapbench.tables.observed_headline import acceptance_headline, headline, published_headline
from leapbench.tables.pipeline_headline import pipeline_headline

RUNS = "runs.csv"


@dataclass(frozen=True)
class Place:
    """Where a table is shown.

    Attributes:
        document: its path in the project.
        suite: whose table it is.
        table: its name.
        interval: what the table must call its intervals, so that older ones are not renamed.
        maker: (results/tables/<suite>, commits of its runs) -> markdown.
    """

    document: str
    suite: str
    table: str
    interval: str
    maker: Callable[[Path, list[str]], str]


FINDINGS = "docs/findings.md"
STRICT = "acceptance_strict"
# By the name that the place has in its document.
PLACES = {
    "does it save time": Place("README.md", "referee_micro", "equivalent_budget", FACTOR_INTERVAL, budget_headline),
    "where weights can be predicted": Place(
        "README.md", "learning_rates", "learning_rates", stats.INTERVAL, rates_headline
    ),
    "acceptance": Place(FINDINGS, "leap_verify_embedded", STRICT, stats.RATE_INTERVAL, headline),
    "GPT-2 124M": Place(FINDINGS, "leap_verify_gpt2_cpu", STRICT, stats.RATE_INTERVAL, published_headline),
    "GPT-2 124M, lr 6e-4": Place(
        FINDINGS, "leap_verify_gpt2_cpu_lr6e-4", STRICT, stats.RATE_INTERVAL, acceptance_headline
    ),
    "late gradients": Place("docs/pipelines.md", "layerpipe2", "pipeline", stats.INTERVAL, pipeline_headline),
    "time to baseline": Place(FINDINGS, "ttb_embedded", "time_to_baseline", stats.RATIO_INTERVAL, leap_headline),
}
COVERAGE = ("docs/judging.md", "coverage")  # scripts/coverage.py


def text_of(name: str, folder: Path, commits: list[str] | None = None) -> str:
    """What a document shows of a table.

    Args:
        name: one of PLACES.
        folder: results/tables/<suite>.
        commits: whose runs it was made from; None = those of the folder's runs.csv.

    Raises:
        RecordError: the table is not there, or its intervals are not those of this version.
    """
    place = PLACES[name]
    page = folder / f"{place.table}.md"
    if not page.is_file():
        raise RecordError(f"{page}: not there; make the tables first")
    if place.interval not in page.read_text(encoding="utf-8"):
        raise RecordError(f"{page}: its intervals are not the {place.interval}; make the tables again")
    return place.maker(folder, list(pd.read_csv(folder / RUNS)["git_commit"]) if commits is None else commits)


def write_documents(root: Path) -> dict[str, str]:
    """Put every table of PLACES that can be shown into its document; name -> why not, for the others.

    Args:
        root: of the project.
    """
    complaints = {}
    for name, place in PLACES.items():
        try:
            text = text_of(name, root / "results" / "tables" / place.suite)
        except RecordError as error:
            complaints[name] = str(error)
        else:
            into_document(root / place.document, name, text)
    return complaints


def marks(name: str) -> tuple[str, str]:
    """The lines between which the place of this name lies."""
    return f"<!-- {name}: written, do not edit -->", f"<!-- /{name} -->"


def into_document(document: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a place.

    Raises:
        RecordError: the marks are missing.
    """
    content = document.read_text(encoding="utf-8")
    start, end = marks(name)
    pattern = re.compile(rf"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(content):
        raise RecordError(f"{document}: no place for {name}; put the lines {start} and {end} where it belongs")
    document.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", content), encoding="utf-8")
