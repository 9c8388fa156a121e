"""What was spent on finding each row's settings, from results/tuning/SUITE.yaml."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from leapbench.names import BASELINE
from leapbench.records.rows import RecordError
from leapbench.tables.judged import PLAIN, Intended

COLUMNS = ["row", "optimizer", "trials", "at_edge"]


def trials_of(path: Path) -> tuple[Intended, pd.DataFrame | None]:
    """The plan of a suite, and per row and base optimizer the settings that were tried and the keys still at an edge.

    Without the file: no plan, and nothing is known.

    Raises:
        RecordError: the file cannot be read.
    """
    if not path.is_file():
        return Intended(), None
    try:
        content = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        plan = Intended(tuple(content["plan"]["budgets"]), frozenset(content["plan"]["curve_seeds"]))
        entries = {(entry["row"], entry["optimizer"]): entry for entry in content["entries"] if entry["budget"] == 1}
        rows = []
        for (row, optimizer), entry in entries.items():
            source = entries[entry["like"] or row, optimizer]
            name = PLAIN if row == BASELINE else row
            rows.append([name, optimizer, len(source["tried"]), " ".join(source["at_edge"])])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RecordError(f"{path} cannot be read ({str(error).splitlines()[0]}); scripts/judge.py writes it") from None
    return plan, pd.DataFrame(rows, columns=COLUMNS)
