"""Tables as markdown, LaTeX and console text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from leapbench.tables.common import Table

MISSING = "missing"


def markdown(table: Table, suite: str, notes: list[str]) -> str:
    """The whole table for a reader: header line, one section per workload, the runs that do not count."""
    parts = [f"# {table.title}: {suite}", "", table.header, ""]
    for name, body in sections(table):
        parts += [f"## {name}", "", body.to_markdown(index=False, disable_numparse=True), ""]
    if not len(table.frame):
        parts += ["The suite asked for nothing that this table shows.", ""]
    if notes:
        parts += ["Not counted:", "", *(f"- {note}" for note in notes), ""]
    parts.append(f"Every digit: `{table.name}.csv`.")
    return "\n".join(parts) + "\n"


def latex(table: Table, suite: str) -> str:
    """One booktabs table per section."""
    parts = ["% needs \\usepackage{booktabs}", f"% {_tex(table.header)}"]
    for name, body in sections(table):
        plain = body.map(_tex).rename(columns=_tex)
        parts.append(
            plain.to_latex(index=False, escape=False, caption=_tex(f"{table.title}. {suite}: {name}"), position="htbp")
        )
    return "\n".join(parts)


def console(table: Table, compact: bool) -> str:
    """The table for a terminal; compact keeps one regime and leaves the intervals out."""
    if compact and table.compact is not None:
        table = replace(table, frame=table.frame[table.frame["regime"] == table.compact])
    lines = []
    for name, body in sections(table, brief=compact):
        lines += [f"  {name}" + (f", regime {table.compact}" if compact and table.compact else "")]
        if compact and table.compact:
            body = body.drop(columns="regime", errors="ignore")
        lines += [f"    {line}" for line in body.to_string(index=False).splitlines()]
    return "\n".join(lines)


def sections(table: Table, brief: bool = False) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, body of strings) for each section."""
    if not len(table.frame):
        return
    for values, part in table.frame.groupby(table.sections, sort=False, dropna=False):
        name = section_name(dict(zip(table.sections, values, strict=True)))
        if table.across:
            yield name, _pivot(table, part, brief)
        elif table.name == "protocols":
            yield name, _side_by_side(table, part, brief)
        else:
            yield name, _plain(table, part)


def section_name(key: dict[str, object]) -> str:
    """`gpt2_nano, stdlib, adamw lr 0.001, protocol exact`."""
    words = [str(key["model"]), str(key["dataset"]), f"{key['optimizer']} lr {key['lr']:g}"]
    words += [str(key["setting"])] if key.get("setting") else []
    return ", ".join(words + [f"{name} {key[name]}" for name in ("protocol", "rule") if name in key])


def number(value: object, percent: bool = False) -> str:
    """A number rounded to what a reader can use; empty for a missing one."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{value:d}"
    size = abs(float(value))  # type: ignore[arg-type]
    if percent:
        return f"{value:.1f}"
    if 0 < size < 0.01:
        return f"{value:.2g}"
    if size >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{0 if size >= 100 else 1 if size >= 10 else 3}f}"


def estimate(row: pd.Series, prefix: str = "", percent: bool = True, brief: bool = False) -> str:
    """`24.3 ± 6.8 [18.1, 30.2]`; `missing` without records, `-` without a proposal in the regime."""
    if pd.isna(row[f"{prefix}n_proposals"]):
        return MISSING
    if not row[f"{prefix}n_proposals"]:
        return "-"
    text = number(row[f"{prefix}mean"], percent)
    if pd.notna(row[f"{prefix}std"]):
        text += f" ± {number(row[f'{prefix}std'], percent)}"
    if pd.notna(row[f"{prefix}ci_low"]) and not brief:
        text += f" [{number(row[f'{prefix}ci_low'], percent)}, {number(row[f'{prefix}ci_high'], percent)}]"
    return text


def _pivot(table: Table, part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    """Rows by `table.rows`, horizons across; a published row below the cells it belongs to."""
    covs = "cov_pct" in part
    body = []
    for key, cells in part.groupby(table.rows, sort=False):
        row = dict(zip(table.rows, key, strict=True))
        row["seeds"] = _span(cells["n_seeds"])
        if not covs:
            row["proposals"] = _span(cells["n_proposals"])
        for _, cell in cells.iterrows():
            column = f"{table.across}={cell[str(table.across)]}"
            if covs:
                row[column] = MISSING if pd.isna(cell["n_proposals"]) else number(cell["cov_pct"], True) or "-"
            else:
                row[column] = estimate(cell, percent=table.percent, brief=brief)
        body.append(row)
        cited = cells[cells["published_source"].notna()]
        if len(cited):
            row = dict(zip(table.rows, key, strict=True))
            row["predictor"] = f"{row['predictor']}, published {cited['published_model'].iloc[0]}"
            if "published_n" in cited:
                row["seeds"] = _span(cited["published_n"].astype(int))
            for _, cell in cited.iterrows():
                column = f"{table.across}={cell[str(table.across)]}"
                row[column] = number(cell["published_cov_pct"], True) if covs else _cited(cell)
            body.append(row)
    return pd.DataFrame(body).fillna("")


def _side_by_side(table: Table, part: pd.DataFrame, brief: bool) -> pd.DataFrame:
    names = [name for name in table.show if f"{name}_mean" in part and name != "published"]
    body = part[["regime", "predictor", "K"]].astype({"K": str})
    for name in names:
        asked = part[f"{name}_n_seeds"].notna()
        cells = part.apply(estimate, axis=1, prefix=f"{name}_", percent=table.percent, brief=brief)
        body[name] = cells.where(asked, "")
    models = part["published_model"].dropna().unique()
    if len(models):
        body[f"published {models[0]}"] = [_cited(cell) for _, cell in part.iterrows()]
    return body


def _plain(table: Table, part: pd.DataFrame) -> pd.DataFrame:
    shown = [column for column in table.show if not (column.startswith("published") and part[column].isna().all())]
    body = pd.DataFrame(
        {column: [number(value, column.endswith("_pct")) for value in part[column]] for column in shown},
        index=part.index,
    )
    first = next((column for column in shown if column in ("mean", "predicted_loss_nats")), None)
    if first:
        body.loc[part["n_checkpoints"].isna().to_numpy(), first] = MISSING
    return body


def _cited(cell: pd.Series) -> str:
    if pd.isna(cell["published_mean"]):
        return ""
    return f"{number(float(cell['published_mean']), True)} ± {number(float(cell['published_std']), True)}"


def _span(counts: pd.Series) -> str:
    known = counts.dropna()
    if not len(known):
        return "0"
    low, high = int(known.min()), int(known.max())
    return str(low) if low == high else f"{low}-{high}"


def _tex(text: str) -> str:
    for plain, tex in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("±", r"$\pm$"), ("<", "$<$"), ("#", r"\#")):
        text = text.replace(plain, tex)
    return text
