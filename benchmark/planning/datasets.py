"""The datasets of a command: each is loaded once, and missing ones are reported at the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmark.core.errors import UserError
from benchmark.data import Dataset, load_dataset
from benchmark.data.stubs import describe_unread, find_stub


class DatasetCache:
    """The datasets of a command, each loaded once.

    skip_missing: remember datasets that are not available instead of raising; dry_run: fetch nothing; the known shape
        of the suite's own datasets is enough to plan with and to estimate the cost.
    """

    def __init__(self, data_root: Path | None, skip_missing: bool, dry_run: bool) -> None:
        self.data_root, self.skip_missing, self.dry_run = data_root, skip_missing, dry_run
        self.missing: dict[str, str] = {}
        """What cannot be made, and why."""
        self.stubs: dict[str, str] = {}
        """The datasets that are not there and were planned with all the same, and how."""
        self._loaded: dict[str, Dataset | UserError] = {}

    def load(self, source: str, what: str) -> Dataset | None:
        """The dataset by name or TOML file; None where it is not there and that is forgiven.

        Raises:
            UserError: it is not there.
        """
        if source not in self._loaded:
            try:
                self._loaded[source] = self._load(source)
            except UserError as error:
                self._loaded[source] = error
        loaded = self._loaded[source]
        if isinstance(loaded, Dataset):
            return loaded
        if not self.skip_missing:
            raise loaded
        self.missing[what] = str(loaded)
        return None

    def _load(self, source: str) -> Dataset:
        if self.dry_run and (stub := find_stub(source, self.data_root)):
            self.stubs[source] = describe_unread(stub, self.data_root)
            return stub
        return load_dataset(source, self.data_root, download=not self.dry_run)

    def report_missing(self, console: Console) -> int:
        """Print what could not be made for want of data; returns the exit code that this makes."""
        for how in self.stubs.values():
            console.print(Text(how, style="yellow"), soft_wrap=True)
        for what, why in self.missing.items():
            console.print(Text(f"{what} left out: {why}", style="yellow"), soft_wrap=True)
        return 1 if self.missing else 0
