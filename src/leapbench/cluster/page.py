"""The progress of some suites, as one page for a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Group
from rich.table import Table
from rich.text import Text

from leapbench.cluster.slurm import SlurmError, queue
from leapbench.cluster.status import State, Survey
from leapbench.names import Status

COLOURS: dict[str, str] = {
    Status.completed: "green", Status.running: "cyan", Status.pending: "blue", Status.partial: "yellow",
    Status.failed: "red", Status.diverged: "magenta", Status.skipped: "dim",
}  # fmt: skip
SHOWN = (Status.failed, Status.partial, Status.running, Status.diverged)


def overview(suites: dict[str, dict[str, State]]) -> Table:
    """How many runs of each suite are in which state."""
    table = Table("suite", box=None, pad_edge=False)
    for name in (*COLOURS, "runs"):
        table.add_column(Text(name, COLOURS.get(name, "")), justify="right")
    for suite, states in suites.items():
        counts = Counter(state.status for state in states.values())
        table.add_row(suite, *(str(counts[status] or "-") for status in COLOURS), str(len(states)))
    return table


def details(suites: dict[str, dict[str, State]], limit: int) -> list[Text]:
    """One to two lines for each run that needs attention, at most `limit` runs."""
    runs = [
        state for status in SHOWN for states in suites.values() for state in states.values() if state.status == status
    ]
    lines = []
    for state in runs[:limit]:
        facts = [fact for fact in (state.progress(), state.reason) if fact]
        line = Text.assemble((f"{state.status:9}", COLOURS[state.status]), f"{state.folder}  {'; '.join(facts)}")
        lines.append(line)
        if state.status in (Status.failed, Status.partial) and (last := state.last_line()):
            lines.append(Text(f"         {last}  ({state.log})", "dim"))
    if len(runs) > limit:
        lines.append(Text(f"and {len(runs) - limit} more; --limit {len(runs)} shows all"))
    return lines


def page(surveys: dict[str, Survey], limit: int) -> Group:
    """The whole page, as of now."""
    try:
        jobs, note = queue(), ""
    except SlurmError as error:
        jobs, note = None, f"{error}; what waits in its queue is unknown"
    suites = {suite: survey.look(jobs) for suite, survey in surveys.items()}
    states = [state for by_run in suites.values() for state in by_run.values()]
    if all(state.status == Status.completed for state in states):
        note = note or f"all {len(states)} completed"
    return Group(overview(suites), "", *details(suites, limit), *([note] if note else []))
