"""Make a card of each method and each network of the tables: what it is, what it costs, and every number it has."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup

from benchmark.backbones import build_network, is_network
from benchmark.backbones.cost import parameters
from benchmark.catalogue import describe_in_full, entries
from benchmark.core.protocols import PAPER
from benchmark.report import prose
from benchmark.report.addresses import address_method, address_network
from benchmark.report.data import TableReport
from benchmark.report.table import format_count, format_power
from tables.result import Cell
from tables.specification import BASELINE
from tables.view import TEACHER, PageCell

CLASSES = 100
"""Those of CIFAR-100, by which the size of a network is told."""


@dataclass(frozen=True)
class CardLine:
    """A number of a card: the table, the address of its cell, what it is of, and the cell."""

    table: TableReport
    address: str
    words: str
    entry: PageCell
    cell: Cell


@dataclass(frozen=True)
class Card:
    """A card; facts: in a line; body: what else there is to say; weights: files, by the run that they are of."""

    name: str
    address: str
    facts: str
    body: Markup
    lines: tuple[CardLine, ...]
    weights: tuple[tuple[str, str], ...]

    @property
    def measured(self) -> int:
        """How many of its numbers are measured."""
        return sum(line.entry.summary is not None for line in self.lines)


def make_method_cards(tables: Sequence[TableReport], weights: dict[str, str]) -> list[Card]:
    """Make the cards of all methods, those with most measured numbers first; weights: kept files by run id."""
    cards = []
    for entry in entries():
        name = entry.method.name
        lines = tuple(line for table in tables for line in _list_row(table, name))
        facts = f"{entry.cost}\N{MULTIPLICATION SIGN} the training step of Baseline"
        body = prose.to_html(describe_in_full(entry), f"{address_method(name)}/")
        cards.append(Card(name, address_method(name), facts, body, lines, _find_weights(lines, weights)))
    return sorted(cards, key=lambda card: -card.measured)


def make_network_cards(tables: Sequence[TableReport], weights: dict[str, str]) -> list[Card]:
    """Make the cards of the networks that the tables train or distil, those with most measured numbers first."""
    pairs = [(table, column, column.pair) for table in tables for column in table.result.table.columns]
    names = dict.fromkeys(name for _, _, pair in pairs for name in reversed(pair.split(">")) if is_network(name))
    cards = []
    for name in names:
        lines = []
        for table, column, pair in pairs:
            teacher, _, student = pair.rpartition(">")
            for row, network in ((BASELINE, student), (TEACHER, teacher)):
                if network == name:
                    lines += [line for line in _list_row(table, row) if line.words == column.name]
        facts, what = _describe_network(name)
        facts += _describe_cost(lines)
        body = Markup("<p>{}</p>").format(what)
        cards.append(Card(name, address_network(name), facts, body, tuple(lines), _find_weights(tuple(lines), weights)))
    return sorted(cards, key=lambda card: -card.measured)


def _list_row(table: TableReport, name: str) -> Iterator[CardLine]:
    """List the numbers of a row: the measured ones, and at paper scale those from elsewhere."""
    result = table.result
    for row in table.page.rows:
        if row.name != name:
            continue
        for column, entry in zip(table.page.columns, row.entries, strict=True):
            if entry.summary or (entry.references and result.scale == PAPER):
                cell = result.cell(name, column.name)
                yield CardLine(table, table.addresses[name, column.name], column.name, entry, cell)


def _find_weights(lines: Sequence[CardLine], weights: dict[str, str]) -> tuple[tuple[str, str], ...]:
    runs = dict.fromkeys(seed.run for line in lines for seed in line.cell.finished)
    return tuple((run, weights[run]) for run in runs if run in weights)


@functools.cache
def _describe_network(name: str) -> tuple[str, str]:
    """Count a network's parameters, and say what its file says of it."""
    # Nothing is computed on this device, so that a network of any size is counted at once.
    with torch.device("meta"):
        network = build_network(name, CLASSES)
    words = (sys.modules[type(network).__module__].__doc__ or "").partition("\n\n")[0]
    return f"{format_count(parameters(network)).text} parameters for {CLASSES} classes", re.sub(r"\s+", " ", words)


def _describe_cost(lines: Sequence[CardLine]) -> str:
    """Say what an image costs at inference, as a record of the network tells; nothing without one."""
    prices = [seed.price for line in lines for seed in line.cell.finished]
    known = next((price.inference_multiply_adds for price in prices if price.inference_multiply_adds), None)
    return f", {format_power(known).text} multiply-adds an image" if known else ""
