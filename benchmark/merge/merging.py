"""A merge: every run of another store is judged first, and then the new ones are written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.core.errors import UserError
from benchmark.io.files import replacing, write_text
from benchmark.io.json_diff import JsonDiff, canonical, first_difference
from benchmark.io.untrusted import ForeignFolder, UntrustedInputError, escape_control_chars, sized
from benchmark.merge.runs import FILE_NAME, Offer, find_link, read_figures, read_offer, read_weights
from benchmark.results.leases import LeaseHolder, LeaseManager
from benchmark.results.record import CorruptRun, Record, anonymise_record, comparable_part
from benchmark.results.store import Store

Kind = Literal["new", "replaced", "equal", "kept", "busy", "unfinished", "conflicting", "refused"]
SPARE = 2**26
"""Bytes that a disk must have left after a merge."""
FIRST = ("status", "reason", "failed_at", "final", "best_on_test", "epochs", "cost", "weights")
"""The order in which records are compared."""
EXPLAINING = ("torch", "cuda", "device_name", "threads", "version", "commit")
"""The fields of provenance that may explain another outcome."""


@dataclass(frozen=True)
class MergeFinding:
    """What a merge does with one run of the other store, or with the figures of one teacher.

    place: its dataset and its folder; why: the reason, as it is printed; size: the bytes that it takes here; is_stray:
    it is a link or a special file outside of every run's folder, which does not show that the folder is a store.
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
        return "/".join(escape_control_chars(part) for part in self.place)


@dataclass
class Merge:
    """Brings runs into a store.

    dry_run: only say what would be done; without_host: leave what names a machine or a user out of the records;
    without_weights: neither read nor copy weights.
    """

    store: Store
    dry_run: bool = False
    without_host: bool = False
    without_weights: bool = False
    _planned: dict[str, str] = field(default_factory=dict)
    """The records, as JSON by the digest of their runs, that a dry run would have written by now."""

    def merge(self, root: Path) -> list[MergeFinding]:
        """Write what is new under `root`, a store copied from anywhere, and return a finding on each run there.

        Raises:
            UserError: `root` cannot be read or is no store, or there is no room for its runs.
        """
        try:
            with ForeignFolder.at(root) as top:
                findings = list(self._survey(top))
                if all(finding.is_stray for finding in findings):
                    raise UserError(
                        f"{root} is no store: it holds no <dataset>/<run>/record.json; give the folder `runs` itself"
                    )
                _check_room(self.store.root, sum(finding.size for finding in findings))
                if self.dry_run:
                    return findings
                return [self._bring(top, finding) if finding.size else finding for finding in findings]
        except UntrustedInputError as reason:
            raise UserError(f"{root}: {reason}; check the path") from reason

    def _survey(self, folder: ForeignFolder, place: tuple[str, ...] = ()) -> Iterator[MergeFinding]:
        """Judge everything in a store or, with its name as `place`, in the folder of a dataset; nothing is changed."""
        for entry in folder.entries():
            inside = (*place, entry.name)
            # Checkpoints are of use only to the machine that wrote them.
            skipped = entry.kind == "file" or entry.name.startswith(".") or (place and entry.name == "cohorts")
            try:
                if link := find_link([entry]):
                    yield MergeFinding("refused", inside, link, is_stray=True)
                elif not skipped:
                    with folder.folder(entry.name) as opened:
                        if not place:
                            yield from self._survey(opened, inside)
                        elif entry.name == "teachers":
                            yield from self._survey_teachers(opened, place[0])
                        else:
                            yield from self._survey_run(opened, place[0], entry.name)
            except UntrustedInputError as reason:
                yield MergeFinding("refused", inside, str(reason), is_stray=not place)

    def _survey_run(self, folder: ForeignFolder, dataset: str, name: str) -> Iterator[MergeFinding]:
        place, names = (dataset, name), {entry.name for entry in folder.entries()}
        if "record.json" not in names:
            if "run.json" in names:
                yield MergeFinding("unfinished", place)
            return
        offer = read_offer(folder, dataset, name)
        kind, why = self._judge(offer)
        size = 0
        if kind in ("new", "replaced"):
            # The epochs are written twice: in the record and in a file of their own.
            size = 2 * offer.size
            if not self.without_weights:
                if missing := [part for part in offer.record["weights"] if f"{part}.safetensors" not in names]:
                    raise UntrustedInputError(
                        f"{missing[0]}.safetensors is missing; --without-weights takes the record alone"
                    )
                size += sum(len(read_weights(folder, offer, part)) for part in offer.record["weights"])
            if self.dry_run:
                self._planned[offer.run.digest] = json.dumps(offer.record)
        yield MergeFinding(kind, place, why, size)

    def _survey_teachers(self, folder: ForeignFolder, dataset: str) -> Iterator[MergeFinding]:
        for entry in folder.entries():
            place = (dataset, "teachers", entry.name)
            try:
                if link := find_link([entry]):
                    raise UntrustedInputError(link)
                if not FILE_NAME.fullmatch(dataset):
                    raise UntrustedInputError("its dataset's name could not name a file")
                if entry.kind == "folder" or entry.name.startswith("."):
                    continue
                _, figures = read_figures(folder, entry.name)
                kind, why = self._judge_figures(place, figures)
                yield MergeFinding(kind, place, why, len(canonical(figures)) if kind == "new" else 0, is_run=False)
            except UntrustedInputError as reason:
                yield MergeFinding("refused", place, str(reason), is_run=False)

    def _judge(self, offer: Offer) -> tuple[Kind, str]:
        """Decide what to do with an offer, and why, by the record here of the same run, if there is one.

        Raises:
            UntrustedInputError: the record here cannot be compared.
        """
        planned = self._planned.get(offer.run.digest)
        try:
            ours = self.store.record(offer.run) if planned is None else json.loads(planned)
        except CorruptRun:
            return "replaced", "a damaged record, which is put aside"
        except UserError as error:
            raise UntrustedInputError(f"the record here cannot be compared: {error}") from error
        if ours is None:
            return "new", ""
        states = (ours["status"], offer.record["status"])
        if states == ("failed", "finished"):
            return "replaced", "a failed run"
        if states == ("finished", "failed"):
            return "kept", f"failed there: {escape_control_chars(offer.record['reason'])}"
        return _compare_records(ours, offer.record)

    def _judge_figures(self, place: tuple[str, str, str], figures: dict[str, float]) -> tuple[Kind, str]:
        dataset, _, name = place
        try:
            with ForeignFolder.at(self.store.root / dataset / "teachers") as folder:
                _, ours = read_figures(folder, name)
        except UntrustedInputError:
            # There are none here, or they are damaged and as good as none.
            return "new", ""
        difference = first_difference(ours, figures)
        return ("conflicting", _describe(difference)) if difference else ("equal", "")

    def _bring(self, top: ForeignFolder, finding: MergeFinding) -> MergeFinding:
        """Write what was judged to be new, unless it has changed since, there or here."""
        try:
            with top.folder(finding.place[0]) as parent, parent.folder(finding.place[1]) as folder:
                if finding.is_run:
                    return self._bring_run(folder, finding)
                sha256, figures = read_figures(folder, finding.place[2])
                self.store.save_teacher_metrics(finding.place[0], sha256, figures)
                return finding
        except UntrustedInputError as reason:
            return MergeFinding("refused", finding.place, str(reason), is_run=finding.is_run)

    def _bring_run(self, folder: ForeignFolder, finding: MergeFinding) -> MergeFinding:
        dataset, name = finding.place
        offer = read_offer(folder, dataset, name)
        run, record = offer.run, offer.record
        if self.without_host:
            record = anonymise_record(record)
        lease = LeaseManager(self.store.root).acquire(self.store.folder(run))
        if isinstance(lease, LeaseHolder):
            return MergeFinding("busy", finding.place, f"by {lease.label}")
        try:
            kind, why = self._judge(offer)
            if kind not in ("new", "replaced"):
                return MergeFinding(kind, finding.place, why)
            self.store.quarantine(run)
            self.store.begin(run)
            self.store.write_epochs(run, record["epochs"])
            for part in () if self.without_weights else record["weights"]:
                content = read_weights(folder, offer, part)
                with replacing(self.store.folder(run) / f"{part}.safetensors") as file:
                    file.temporary.write_bytes(content)
            write_text(self.store.folder(run) / "record.json", json.dumps(record, indent=1) + "\n")
        finally:
            lease.release(forget=self.store.has_record(run))
        return MergeFinding(kind, finding.place, why, finding.size)


def _check_room(root: Path, needed: int) -> None:
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + SPARE > free:
        raise UserError(
            f"no room in {root}: the runs to bring in take {sized(needed)} and {sized(free)} are free; "
            "free some space there or choose another folder with --runs"
        )


def _compare_records(ours: Record, theirs: Record) -> tuple[Kind, str]:
    """Compare the outcomes of two records: their first difference, and what may explain it."""
    here, there = comparable_part(ours), comparable_part(theirs)
    names = [*FIRST, *sorted({*here, *there} - {*FIRST})]
    difference = first_difference(*({name: side.get(name) for name in names} for side in (here, there)))
    if difference is None:
        return "equal", ""
    text = _describe(difference)
    if difference.place[:1] == ("weights",):
        text = f"all figures are equal, and the weights differ: {text}"
    mine, other = ours["provenance"], theirs["provenance"]
    differing = [name for name in EXPLAINING if mine.get(name) != other.get(name)]
    reasons = [f"{name} {_brief(mine.get(name))} here, {_brief(other.get(name))} there" for name in differing]
    return "conflicting", "; ".join([text, *reasons])


def _describe(difference: JsonDiff) -> str:
    """A difference in words: `final.top1 71.2 here, 70.9 there`; items of lists are counted from 1."""
    place = ".".join(str(step + 1) if isinstance(step, int) else step for step in difference.place)
    return f"{escape_control_chars(place, 80)} {_brief(difference.left)} here, {_brief(difference.right)} there"


def _brief(value: Any) -> str:
    if value is None:
        return "nothing"
    return escape_control_chars(value if isinstance(value, str) else canonical(value), 40)
