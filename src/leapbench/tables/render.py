"""Tables as markdown, LaTeX and console text."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from itertools import groupby
from typing import Any

import pandas as pd

from leapbench.tables.common import Table
from leapbench.tables.methods import workload_name
from leapbench.tables.numbers import MISSING, Cell, number

Bodies = list[tuple[str, pd.DataFrame]]


def markdown(table: Table, suite: str, notes: dict[str, list[str]], bodies: Bodies) -> str:
    """The whole table for a reader: header line, the sections with their remarks, the runs that do not count."""
    parts = [f"# {table.title}: {suite}", "", *(line for problem in table.problems for line in (f"**{problem}**", ""))]
    parts += [table.header, ""]
    for name, body in bodies:
        parts += [f"## {name}", "", *(line for remark in table.remarks.get(name, []) for line in (remark, ""))]
        parts += [body.to_markdown(index=False, disable_numparse=True), ""]
    if not len(table.frame):
        parts += ["The suite asked for nothing that this table shows.", ""]
    for heading, lines in notes.items():
        parts += [f"{heading}:", "", *(f"- {line}" for line in lines), ""] if lines else []
    parts.append(f"Every digit: `{table.name}.csv`.")
    return "\n".join(parts) + "\n"


def latex(table: Table, suite: str, bodies: Bodies) -> str:
    """One booktabs table per section."""
    parts = ["% needs \\usepackage{booktabs}", f"% {_tex(table.header)}"]
    for name, body in bodies:
        parts += [f"% {_tex(remark)}" for remark in table.remarks.get(name, [])]
        plain = body.map(_tex).rename(columns=_tex)
        parts.append(
            plain.to_latex(index=False, escape=False, caption=_tex(f"{table.title}. {suite}: {name}"), position="htbp")
        )
    return "\n".join(parts)


def console(table: Table, compact: bool) -> str:
    """The table for a terminal; compact keeps one regime and the predictors it is about, without the intervals."""
    if compact and table.compact is not None:
        table = replace(table, frame=table.frame[table.frame["regime"] == table.compact])
    if compact and table.compact_predictors:
        table = replace(table, frame=table.frame[table.frame["predictor"].isin(table.compact_predictors)])
    lines = []
    for name, body in sections(table, brief=compact):
        lines += [f"  {name}" + (f", regime {table.compact}" if compact and table.compact else "")]
        if compact and table.compact:
            body = body.drop(columns="regime", errors="ignore")
        lines += [f"    {remark}" for remark in table.remarks.get(name, [])]
        lines += [f"    {line}" for line in body.to_string(index=False).splitlines()]
    return "\n".join(lines)


def sections(table: Table, brief: bool = False) -> Bodies:
    """(name, body of strings) for each section; brief leaves the intervals out."""
    bodies = []
    for values, part in table.frame.groupby(table.sections, sort=False, dropna=False):
        name = section_name(dict(zip(table.sections, values, strict=True)))
        if table.body is not None:
            body = table.body(part, brief)
        elif table.across:
            body = _pivot(table, part.to_dict("records"), brief)
        elif table.name == "protocols":
            body = _side_by_side(table, part, brief)
        else:
            body = _plain(table, part)
        bodies.append((name, body))
    return bodies


def section_name(key: dict[str, object]) -> str:
    """`gpt2_nano, stdlib, adamw lr 0.001, protocol exact`; where runs leap, `fcn_small, digits, 375 steps of 48`."""
    if "batch_size" in key:
        return workload_name(key)
    if len(key) == 1:
        return str(*key.values())
    rate = f" lr {key['lr']:g}" if "lr" in key else ""
    words = [str(key["model"]), str(key["dataset"]), f"{key['optimizer']}{rate}"]
    words += [str(key["setting"])] if key.get("setting") else []
    return ", ".join(words + [f"{name} {key[name]}" for name in ("protocol", "rule") if name in key])


def estimate(row: Cell, prefix: str = "", percent: bool = True, brief: bool = False) -> str:
    """`24.3 ± 6.8 [18.1, 30.2]`; `missing` without records, `-` without a proposal in the regime."""
    proposals = row[f"{prefix}n_proposals"]
    if pd.isna(proposals):
        return MISSING
    if not proposals:
        return "-"
    mean, std, low, high = (number(row[f"{prefix}{name}"], percent) for name in ("mean", "std", "ci_low", "ci_high"))
    interval = f" [{low}, {high}]" if low and not brief else ""
    return f"{mean} ± {std}{interval}" if std else mean


def _pivot(table: Table, cells: list[dict[Hashable, Any]], brief: bool) -> pd.DataFrame:
    """Rows by `table.rows`, horizons across; a published row below the cells it belongs to."""
    body = []
    for _, group in groupby(cells, key=lambda cell: [cell[name] for name in table.rows]):
        row = list(group)
        labels = {name: row[0][name] for name in table.rows}
        counts = {"seeds": _span(row, "n_seeds")}
        if "cov_pct" in row[0]:
            texts = {_across(table, cell): _variation(cell) for cell in row}
        else:
            counts["proposals"] = _span(row, "n_proposals")
            texts = {_across(table, cell): estimate(cell, percent=table.percent, brief=brief) for cell in row}
        body.append({**labels, **counts, **texts})
        cited = [cell for cell in row if isinstance(cell["published_source"], str)]
        if cited:
            labels["predictor"] = f"{labels['predictor']}, published {cited[0]['published_model']}"
            counts = {"seeds": _span(cited, "published_n")} if "published_n" in cited[0] else {}
            body.append({**labels, **counts, **{_across(table, cell): _cited(cell) for cell in cited}})
    return pd.DataFrame(body).fillna("")


def _across(table: Table, cell: Cell) -> str:
    return f"{table.across}={cell[table.across]}"


def _variation(cell: Cell) -> str:
    return MISSING if pd.isna(cell["n_proposals"]) else number(cell["cov_pct"], True) or "-"


def _side_by_side(table: Table, part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """A column per protocol; empty where the suite did not ask a protocol for the cell."""
    names = [name for name in table.show if f"{name}_mean" in part]
    cells = part.to_dict("records")
    body = part[["regime", "predictor", "K"]].astype({"K": str})
    for name in names:
        requested = [not pd.isna(cell[f"{name}_n_seeds"]) for cell in cells]
        texts = [estimate(cell, f"{name}_", table.percent, brief) for cell in cells]
        body[name] = [text if is_requested else "" for text, is_requested in zip(texts, requested, strict=True)]
    models = part["published_model"].dropna().unique()
    if len(models):
        body[f"published {models[0]}"] = [_cited(cell) for cell in cells]
    return body


def _plain(table: Table, part: pd.DataFrame) -> pd.DataFrame:
    columns = [column for column in table.show if not (column.startswith("published") and part[column].isna().all())]
    body = pd.DataFrame(
        {column: [number(value, column.endswith("_pct")) for value in part[column]] for column in columns},
        index=part.index,
    )
    first = next((column for column in columns if column in ("mean", "predicted_loss_nats")), None)
    if first:
        body.loc[part["n_checkpoints"].isna().to_numpy(), first] = MISSING
    return body


def _cited(cell: Cell) -> str:
    if "published_cov_pct" in cell:
        return number(cell["published_cov_pct"], True)
    mean, std = number(cell["published_mean"], True), number(cell["published_std"], True)
    return f"{mean} ± {std}" if mean else ""


def _span(cells: list[dict[Hashable, Any]], count: str) -> str:
    counts = [int(cell[count]) for cell in cells if not pd.isna(cell[count])] or [0]
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _tex(text: str) -> str:
    for plain, tex in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("±", r"$\pm$"), ("<", "$<$"), ("#", r"\#")):
        text = text.replace(plain, tex)
    return text
