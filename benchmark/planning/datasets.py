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
        """Tables and panels whose dataset is missing, and why."""
        self.stubs: dict[str, str] = {}
        """A line on each dataset that is missing and was planned by its known shape."""
        self._loaded: dict[str, Dataset | UserError] = {}

    def load(self, source: str, what: str) -> Dataset | None:
        """Load a dataset by name or TOML file; None if it is missing and that is allowed.

        Raises:
            UserError: it is missing.
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
        """Print which datasets are missing; returns the exit code."""
        for how in self.stubs.values():
            console.print(Text(how, style="yellow"), soft_wrap=True)
        for what, why in self.missing.items():
            console.print(Text(f"{what} left out: {why}", style="yellow"), soft_wrap=True)
        return 1 if self.missing else 0
