"""Whatever a user writes, the pages keep their structure and show the text as it is."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from tables.escaping import escape_latex, escape_markdown, plain
from tables.render import Cell, TableResult, to_csv, to_latex, to_markdown, to_terminal
from tables.specification import Column, Published, Row, Table

SPECIAL = "\\`*_{}[]()<>|~$&%#^\"'!?-+=.:;@/ \n\t\r\u2028\u202e1ab"
TEXTS = st.one_of(st.text(max_size=25), st.text(SPECIAL, max_size=25)).filter(lambda text: plain(text))
NASTY = (
    "\\",
    "\\\\[2cm]",
    "*]",
    "[x](y)",
    "a & b",
    "100 %",
    "$x^2$",
    "{",
    "}",
    "#1",
    "a_b",
    "~",
    "^",
    "| a | b |",
    "a\nb",
    "<br>",
    "&amp;",
    "`code`",
    "---",
    "1. x",
    "> x",
    "\\end{tabular}",
    "\\input{x}",
    "%",
    "β-KD Müller 中文 \U0001f600",
    "a\u202eb\x00",
)


def result_with(text: str) -> TableResult:
    """A result whose every free text is the given one."""
    table = Table(
        name="mine",
        caption=text,
        metric=text,
        dataset="digits",
        columns=(Column(teacher=text, student="s"), Column(teacher="t", student=text)),
        rows=(
            Row(method=text, printed=(70.0, float("nan")), footnotes=(text,)),
            Row(method="KD", published=Published(source=text, mean=(71.0, 72.0))),
        ),
        footnotes=(text,),
    )
    names = [column.name for column in table.columns]
    cells = {
        (text, names[0]): Cell(text, names[0], (70.0, 71.0), "partial", (71.0, 72.0), (text,), 3),
        ("KD", names[0]): Cell("KD", names[0], (), "failed", (), (text,)),
    }
    return TableResult(table, "demo", "6", text, cells, {}, text, False, (text,))


def tables_in(tokens: list[Token]) -> list[list[int]]:
    """The number of cells in each row of each table."""
    tables: list[list[int]] = []
    for token in tokens:
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append(0)
        elif token.type in ("th_open", "td_open"):
            tables[-1][-1] += 1
    return tables


def shown(markdown: str) -> str:
    """The text that a reader sees of one line of Markdown, with HTML not let through."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    kinds = [token.type for token in tokens]
    assert kinds == ["paragraph_open", "inline", "paragraph_close"]
    children = tokens[1].children or []
    assert {child.type for child in children} <= {"text", "text_special"}, [child.type for child in children]
    return "".join(child.content for child in children)


def escaped_away(latex: str) -> str:
    """LaTeX without accents and escaped specials, so that the specials left have a meaning."""
    without_accents = re.sub(r"\\[`'^~=u.\"rHvc]\{([A-Za-z])\}", r"\1", latex)
    return re.sub(r"\\[&%$#_{}]", "", without_accents)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("1. x")
@example("+ x")
@example("&amp;")
@example("a\\")
def test_markdown_shows_the_text_as_it_is(text: str) -> None:
    assert shown(escape_markdown(text)) == plain(text)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
@example("| a | b |\n---")
@example("\\")
def test_no_text_breaks_the_markdown_tables(text: str) -> None:
    page = to_markdown(result_with(text))
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    # A heading, then Teacher and two methods; then the best-on-test table with one.
    assert tables_in(tokens) == [[3] * 4, [3] * 2]
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2"]
    assert not [
        token for token in tokens if token.type in ("html_block", "fence", "code_block", "blockquote_open", "hr")
    ]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_latex_text_is_ascii_without_active_characters(text: str) -> None:
    latex = escape_latex(text)
    assert latex.isascii()
    assert "\n" not in latex
    left = escaped_away(latex.replace(r"\textbackslash{}", ""))
    assert not set(left) & set("&%#_~^<>|")
    assert left.count("{") == left.count("}")
    assert left.count("$") % 2 == 0
    # In all of it: what is left of an escaped brace between two hyphens is two hyphens.
    assert "--" not in latex or re.search("[\N{EN DASH}\N{EM DASH}]", text)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_no_text_breaks_the_latex_tables(text: str) -> None:
    page = to_latex(result_with(text))
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", page, flags=re.DOTALL)
    assert len(bodies) == 2
    for body in bodies:
        rows = [line for line in body.splitlines() if not re.match(r"\\(midrule$|cmidrule\()", line)]
        assert all(line.endswith(r" \\") for line in rows)
        columns = [escaped_away(line).count("&") + line.count(r"\multicolumn{2}{c}") for line in rows]
        assert columns == [columns[-1]] * len(rows)
        assert not [line for line in rows if line.lstrip().startswith(("[", "*"))]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_no_text_breaks_the_csv(text: str) -> None:
    lines = list(csv.reader(io.StringIO(to_csv(result_with(text)), newline="")))
    assert len(lines) == 1 + 3 * 2
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[3][1] == plain(text)


@settings(max_examples=50, deadline=None)
@given(TEXTS)
@example("[bold]x[/]")
@example("[/]")
def test_the_terminal_takes_no_markup_from_texts(text: str) -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(to_terminal(result_with(text), 100))
    written = "".join(console.export_text().split())
    assert "".join(plain(text).split()) in written


def test_text_in_a_table_is_one_line_without_controls() -> None:
    assert plain(" a\n b\x00\u202ec\t\ud800") == "a bc"


def test_latex_has_accents_greek_letters_and_codes_for_the_rest() -> None:
    assert escape_latex("Müller, β-KD \N{EN DASH} ±1") == r"M\"{u}ller, $\beta$-KD -- $\pm$1"
    assert escape_latex("中") == "{[}U+4E2D{]}"
    assert escape_latex("a--b") == "a-{}-b"


def test_pdflatex_takes_every_text(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex here (on Debian: texlive-latex-recommended)")
    pages = [to_latex(result_with(text)) for text in NASTY]
    for start in (0x20, 0x40, 0x60, *range(0xA0, 0x250, 32), 0x3B0):
        pages.append(escape_latex(" ".join(map(chr, range(start, start + 32)))))
    document = "\n".join(
        [r"\documentclass{article}\usepackage{booktabs}\begin{document}", *(f"{page}\\clearpage" for page in pages)]
    )
    (tmp_path / "page.tex").write_text(document + r"\end{document}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-2000:]
    assert f"({len(pages)} pages" in output
