"""Bring a colleague's runs into one's own: `python -m benchmark.merge DIR`.

Nothing in DIR is believed: what cannot be checked is refused and said (`benchmark.foreign`). Nothing here is
overwritten but a run that failed or is damaged, and a run is written as training writes it, its record last.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmark.claims import Claims, Owner
from benchmark.command_line import run_app
from benchmark.errors import UserError
from benchmark.files import check_writable, replacing, write_text
from benchmark.foreign import Entry, ForeignFolder, Refused, shown, sized
from benchmark.foreign_runs import (
    FILE_NAME,
    Offer,
    canonical,
    check_weights,
    links_in,
    read_figures,
    read_offer,
    read_part,
)
from benchmark.options import Runs
from benchmark.results import DamagedRun, Record, Store, outcome
from benchmark.spec import Run

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Kind = Literal["new", "replaced", "equal", "kept", "busy", "unfinished", "conflicting", "refused"]
MEANINGS: dict[Kind, str] = {
    "new": "brought in",
    "replaced": "took the place of a run that failed or was damaged here",
    "equal": "here already, with the same outcome",
    "kept": "finished here, failed there: ours stays",
    "busy": "being trained here right now: left; call again later",
    "unfinished": "without a record there: left",
    "conflicting": "the same run with another outcome: both stay where they are",
    "refused": "not taken",
}
FORESEEN: dict[Kind, str] = {
    "new": "would be brought in",
    "replaced": "would take the place of a run that failed or is damaged here",
}
"""What a dry run says instead."""
STYLES: dict[Kind, str] = {
    "new": "green",
    "replaced": "green",
    "conflicting": "red",
    "refused": "red",
    "busy": "yellow",
}
LISTED: tuple[Kind, ...] = ("replaced", "kept", "busy", "conflicting", "refused")
"""Of these a line is printed for each run."""
FIRST = ("status", "reason", "failed_at", "final", "best_on_test", "epochs", "cost", "weights")
"""The order in which records are compared."""
EXPLAINING = ("torch", "cuda", "device_name", "threads", "version", "commit")
"""What of two provenances may explain another outcome."""
SPARE = 2**26
"""Bytes that a disk must have left after a merge."""


@dataclass(frozen=True)
class Finding:
    """What came of one run (or of the figures of one teacher) there.

    place: its dataset and its folder; why: what a line about it says; size: the bytes that it takes here; is_stray: it
    is a link or a special file outside of every run's folder, which says nothing of whether there is a store.
    """

    kind: Kind
    place: tuple[str, ...]
    why: str = ""
    size: int = 0
    is_run: bool = True
    is_stray: bool = False

    @property
    def name(self) -> str:
        """The place as a terminal may show it."""
        return "/".join(shown(part) for part in self.place)


@dataclass
class Merge:
    """Brings runs into a store, or only says what it would do (`dry_run`)."""

    store: Store
    dry_run: bool = False
    _promised: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)
    """Where the runs are, by digest, that a dry run would have brought in by now."""

    def merge(self, root: Path) -> list[Finding]:
        """Bring in what is new under `root`, a store copied from anywhere, and say what came of each run there.

        Raises:
            UserError: `root` cannot be read or is no store, or there is no room for its runs.
        """
        try:
            with ForeignFolder.at(root) as top:
                findings = list(self._survey(top, root))
                if all(finding.is_stray for finding in findings):
                    raise UserError(
                        f"{root} is no store: it holds no <dataset>/<run>/record.json; give the folder `runs` itself"
                    )
                _check_room(self.store.root, sum(finding.size for finding in findings))
                if self.dry_run:
                    return findings
                return [self._bring(top, finding) if finding.size else finding for finding in findings]
        except Refused as reason:
            raise UserError(f"{root}: {reason}; check the path") from reason

    def _survey(self, top: ForeignFolder, root: Path) -> Iterator[Finding]:
        """Look at everything there, and change nothing."""
        for entry in _links(entries := top.entries()):
            yield Finding("refused", (entry.name,), f"{links_in([entry])}", is_stray=True)
        for dataset in _folders(entries):
            try:
                with top.folder(dataset) as folder:
                    yield from self._survey_dataset(folder, dataset, root)
            except Refused as reason:
                yield Finding("refused", (dataset,), str(reason), is_stray=True)

    def _survey_dataset(self, folder: ForeignFolder, dataset: str, root: Path) -> Iterator[Finding]:
        for entry in _links(entries := folder.entries()):
            yield Finding("refused", (dataset, entry.name), f"{links_in([entry])}", is_stray=True)
        for name in _folders(entries):
            place = (dataset, name)
            try:
                # Checkpoints are of use only to the machine that wrote them.
                if name == "teachers":
                    with folder.folder(name) as teachers:
                        yield from self._survey_teachers(teachers, dataset)
                elif name != "cohorts":
                    yield from self._survey_run(folder, place, root)
            except Refused as reason:
                yield Finding("refused", place, str(reason))

    def _survey_run(self, parent: ForeignFolder, place: tuple[str, str], root: Path) -> Iterator[Finding]:
        with parent.folder(place[1]) as folder:
            names = {entry.name for entry in folder.entries()}
            if "record.json" not in names:
                if "run.json" in names:
                    yield Finding("unfinished", place)
                return
            offer = read_offer(folder, *place)
            kind, why = self._judge(offer)
            size = 0
            if kind in ("new", "replaced"):
                # The record stands there twice: its epochs are a file of their own too.
                size = check_weights(folder, offer) + 2 * offer.size
                if self.dry_run:
                    self._promised[offer.run.digest] = (root, place)
            yield Finding(kind, place, why, size)

    def _survey_teachers(self, folder: ForeignFolder, dataset: str) -> Iterator[Finding]:
        for entry in folder.entries():
            place = (dataset, "teachers", entry.name)
            try:
                if link := links_in([entry]):
                    raise Refused(link)
                if not FILE_NAME.fullmatch(dataset):
                    raise Refused("its dataset's name could not name a file")
                if entry.kind == "folder" or entry.name.startswith("."):
                    continue
                _, figures = read_figures(folder, entry.name)
                kind, why = self._judge_figures(place, figures)
                yield Finding(kind, place, why, len(canonical(figures)) if kind == "new" else 0, is_run=False)
            except Refused as reason:
                yield Finding("refused", place, str(reason), is_run=False)

    def _judge(self, offer: Offer) -> tuple[Kind, str]:
        """What an offer is to the run that there may be here, and what to say of it.

        Raises:
            Refused: the record here cannot be compared.
        """
        try:
            ours = self._ours(offer.run)
        except DamagedRun:
            return "replaced", "a damaged record, which is put aside"
        except UserError as error:
            raise Refused(f"the record here cannot be compared: {error}") from error
        if ours is None:
            return "new", ""
        states = (ours["status"], offer.record["status"])
        if states == ("failed", "finished"):
            return "replaced", "a failed run"
        if states == ("finished", "failed"):
            return "kept", f"failed there: {shown(offer.record['reason'])}"
        difference = first_difference(ours, offer.record)
        return ("conflicting", difference) if difference else ("equal", "")

    def _ours(self, run: Run) -> Record | None:
        if run.digest not in self._promised:
            return self.store.record(run)
        root, (dataset, name) = self._promised[run.digest]
        with ForeignFolder.at(root) as top, top.folder(dataset) as parent, parent.folder(name) as folder:
            return read_offer(folder, dataset, name).record

    def _judge_figures(self, place: tuple[str, str, str], figures: dict[str, float]) -> tuple[Kind, str]:
        dataset, _, name = place
        try:
            with ForeignFolder.at(self.store.root / dataset / "teachers") as folder:
                _, ours = read_figures(folder, name)
        except Refused:
            # There are none here, or they are damaged and as good as none.
            return "new", ""
        if canonical(ours) == canonical(figures):
            return "equal", ""
        return "conflicting", _first_difference(ours, figures, "")

    def _bring(self, top: ForeignFolder, finding: Finding) -> Finding:
        """Copy what a survey has found to be new, unless it has changed since, there or here."""
        try:
            with top.folder(finding.place[0]) as parent, parent.folder(finding.place[1]) as folder:
                if finding.is_run:
                    return self._bring_run(folder, finding)
                sha256, figures = read_figures(folder, finding.place[2])
                self.store.keep_released_figures(finding.place[0], sha256, figures)
                return finding
        except Refused as reason:
            return Finding("refused", finding.place, str(reason), is_run=finding.is_run)

    def _bring_run(self, folder: ForeignFolder, finding: Finding) -> Finding:
        dataset, name = finding.place
        offer = read_offer(folder, dataset, name)
        run, record = offer.run, offer.record
        with _claimed(self.store, run) as owner:
            if owner is not None:
                return Finding("busy", finding.place, f"by {shown(owner.words)}")
            kind, why = self._judge(offer)
            if kind not in ("new", "replaced"):
                return Finding(kind, finding.place, why)
            self.store.put_aside(run)
            self.store.begin(run)
            self.store.write_epochs(run, record["epochs"])
            for part in record["weights"]:
                with (
                    replacing(self.store.folder(run) / f"{part}.safetensors") as file,
                    file.temporary.open("wb") as target,
                ):
                    read_part(folder, offer, part, target)
            write_text(self.store.folder(run) / "record.json", json.dumps(record, indent=1) + "\n")
        return Finding(kind, finding.place, why, finding.size)


@contextlib.contextmanager
def _claimed(store: Store, run: Run) -> Iterator[Owner | None]:
    """Within it nobody else trains or brings in the run; or gives whoever does so now."""
    claim = Claims(store.root).take(store.folder(run))
    if isinstance(claim, Owner):
        yield claim
        return
    try:
        yield None
    finally:
        claim.release(forget=store.has_record(run))


def _links(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.kind in ("link", "special")]


def _folders(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries if entry.kind == "folder" and not entry.name.startswith(".")]


def _check_room(root: Path, needed: int) -> None:
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + SPARE > free:
        raise UserError(
            f"no room in {root}: the runs to bring in take {sized(needed)} and {sized(free)} are free; "
            "free some space there or choose another folder with --runs"
        )


def first_difference(ours: Record, theirs: Record) -> str:
    """The first thing in which the outcomes of two records differ, and what may explain it; empty for none."""
    here, there = outcome(ours), outcome(theirs)
    if canonical(here) == canonical(there):
        return ""
    names = [*FIRST, *sorted({*here, *there} - {*FIRST})]
    name = next(name for name in names if canonical(here.get(name)) != canonical(there.get(name)))
    found = _first_difference(here.get(name), there.get(name), name)
    if name == "weights":
        found = f"all figures are equal, and the weights differ: {found}"
    mine, other = ours["provenance"], theirs["provenance"]
    differing = [name for name in EXPLAINING if mine.get(name) != other.get(name)]
    return "; ".join(
        [found, *(f"{name} {_brief(mine.get(name))} here, {_brief(other.get(name))} there" for name in differing)]
    )


def _first_difference(here: Any, there: Any, place: str) -> str:
    """The first place in which two values differ, with what stands there: `final.top1 71.2 here, 70.9 there`."""
    if isinstance(here, dict) and isinstance(there, dict):
        pairs = [(str(name), here.get(name), there.get(name)) for name in dict.fromkeys([*here, *there])]
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        pairs = [(str(number), mine, other) for number, (mine, other) in enumerate(zip(here, there, strict=True), 1)]
    else:
        pairs = []
    for name, mine, other in pairs:
        if canonical(mine) != canonical(other):
            return _first_difference(mine, other, f"{place}.{name}" if place else name)
    return f"{shown(place, 80)} {_brief(here)} here, {_brief(there)} there"


def _brief(value: Any) -> str:
    if value is None:
        return "nothing"
    return shown(value if isinstance(value, str) else canonical(value), 40)


@app.command()
def main(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Stores of runs, copied from anywhere.")],
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
) -> int:
    """Bring in the runs of other stores that are new here, and say which are equal, conflicting or refused."""
    console = Console()
    for folder in folders:
        _check_folder(folder, runs)
    check_writable(runs, "--runs")
    merge = Merge(Store(runs), dry_run)
    troubled = False
    for folder in folders:
        with console.status(f"reading {shown(folder)}"):
            findings = merge.merge(folder)
        _print(console, folder, runs, findings, dry_run)
        troubled |= any(finding.kind in ("conflicting", "refused") for finding in findings)
    return int(troubled)


def _check_folder(folder: Path, runs: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is no folder; give one that holds runs, such as a copy of a colleague's runs")
    if runs.exists() and folder.resolve().is_relative_to(runs.resolve()):
        raise UserError(f"{shown(folder)} is {runs} itself or lies in it; give a store from elsewhere")


def _print(console: Console, folder: Path, runs: Path, findings: Sequence[Finding], dry_run: bool) -> None:
    for kind in LISTED:
        for finding in findings:
            if finding.kind == kind:
                line = Text.assemble((f"{kind}: ", STYLES.get(kind, "")), finding.name, f": {finding.why}")
                console.print(line, soft_wrap=True)
    heading = f"{'dry run: ' if dry_run else ''}{shown(folder)} into {runs}"
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    counts = {is_run: Counter(found.kind for found in findings if found.is_run == is_run) for is_run in (True, False)}
    table.add_column("")
    table.add_column("runs", justify="right")
    if counts[False]:
        table.add_column("teachers", justify="right")
    table.add_column("")
    for kind, meaning in (MEANINGS | FORESEEN if dry_run else MEANINGS).items():
        numbers = [str(counts[True][kind]), *([str(counts[False][kind])] if counts[False] else [])]
        if any(number != "0" for number in numbers) or kind in ("new", "equal", "conflicting", "refused"):
            table.add_row(Text(kind, style=STYLES.get(kind, "")), *numbers, meaning)
    console.print(table)


if __name__ == "__main__":
    run_app(app, "python -m benchmark.merge")
