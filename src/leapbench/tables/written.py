"""Tables as they were written for a reader, read back from their markdown."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from leapbench.tables.sources import Body

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


@dataclass
class Section:
    """What stands below one heading.

    Attributes:
        heading: plain text; empty for what stands before the first heading.
        before: HTML of what stands above the table, or of everything where there is no table.
        body: the table.
        after: HTML of what stands below the table.
    """

    heading: str
    before: str = ""
    body: Body | None = None
    after: str = ""


@dataclass
class Written:
    """A page of tables.

    Attributes:
        title: its first heading, without the name of the suite.
        sections: in order; the first has no heading.
    """

    title: str
    sections: list[Section]


def read_written(path: Path, said: Container[str] = frozenset(), anchors: Mapping[str, str] | None = None) -> Written:
    """Read a page that the tables or the report have written.

    Args:
        path: the markdown; its folder is the suite.
        said: lines that are left out below the last table.
        anchors: file name -> place in the page that links to the file now lead to; other relative links are no links.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith("|")), default=len(lines))
    lines = [line for number, line in enumerate(lines) if number <= last or line not in said]
    if lines and lines[-1].endswith(f"`{path.stem}.csv`."):
        del lines[-1]
    tokens = MARKDOWN.parse("\n".join(lines))
    page = Written("", [Section("")])
    prose: list[Token] = []
    at = 0
    while at < len(tokens):
        end = _end(tokens, at)
        block, first = tokens[at:end], tokens[at]
        if first.type == "heading_open" and first.tag == "h1" and not page.title:
            page.title = _text(block[1]).removesuffix(f": {path.parent.name}")
        elif first.type in ("heading_open", "table_open"):
            _put(page.sections[-1], prose, anchors or {})
            if first.type == "heading_open" or page.sections[-1].body:
                heading = _text(block[1]) if first.type == "heading_open" else page.sections[-1].heading
                page.sections.append(Section(heading))
            if first.type == "table_open":
                page.sections[-1].body = _body(page.sections[-1].heading, block)
        else:
            prose += block
        at = end
    _put(page.sections[-1], prose, anchors or {})
    return page


def _end(tokens: list[Token], at: int) -> int:
    """Index after the block that begins at `at`."""
    depth = 0
    for index in range(at, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index + 1
    return len(tokens)


def _put(section: Section, prose: list[Token], anchors: Mapping[str, str]) -> None:
    """Add prose to a section as HTML, and forget it."""
    for token in prose:
        _lead(token, anchors)
    text = MARKDOWN.renderer.render(prose, MARKDOWN.options, {})
    if section.body is None:
        section.before += text
    else:
        section.after += text
    prose.clear()


def _lead(token: Token, anchors: Mapping[str, str]) -> None:
    """Lead the links of a paragraph to their places; what has none is no link."""
    dead = False
    kept = []
    for child in token.children or []:
        if child.type == "link_open":
            href = str(child.attrs.get("href", ""))
            dead = href not in anchors and not href.startswith(("https://", "http://"))
            if href in anchors:
                child.attrs["href"] = f"#{anchors[href]}"
        if child.type == "image" or (dead and child.type in ("link_open", "link_close")):
            continue
        kept.append(child)
    if token.children is not None:
        token.children = kept


def _body(heading: str, block: list[Token]) -> Body:
    rows: list[list[str]] = []
    for token, inner in pairwise(block):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("th_open", "td_open"):
            rows[-1].append(_text(inner))
    return Body(heading, rows[0], rows[1:])


def _text(inline: Token) -> str:
    """Without marks."""
    return "".join(child.content for child in inline.children or []).strip()
