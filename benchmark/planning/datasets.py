"""The datasets of a command: each is loaded once, and what is not there is told at the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from benchmark.core.errors import UserError
from benchmark.data import Dataset, load_dataset
from benchmark.data.stubs import describe_unread, find_stub


class DatasetCache:
    """The datasets of a command, each loaded once; a forgiving one remembers what is not there and goes on.

    dry: fetch nothing; of the suite's own datasets the known form is enough to plan with, and to say what it costs.
    """

    def __init__(self, data_root: Path | None, forgiving: bool, dry: bool) -> None:
        self.data_root, self.forgiving, self.dry = data_root, forgiving, dry
        self.missing: dict[str, str] = {}
        """What cannot be made, and why."""
        self.imagined: dict[str, str] = {}
        """The datasets that are not there and were planned with all the same, and how."""
        self._loaded: dict[str, Dataset | UserError] = {}

    def get(self, source: str, what: str) -> Dataset | None:
        """The dataset by name or TOML file; None where it is not there and that is forgiven.

        Raises:
            UserError: it is not there.
        """
        if source not in self._loaded:
            try:
                self._loaded[source] = self._load(source)
            except UserError as error:
                self._loaded[source] = error
        found = self._loaded[source]
        if isinstance(found, Dataset):
            return found
        if not self.forgiving:
            raise found
        self.missing[what] = str(found)
        return None

    def _load(self, source: str) -> Dataset:
        if self.dry and (imagined := find_stub(source, self.data_root)):
            self.imagined[source] = describe_unread(imagined, self.data_root)
            return imagined
        return load_dataset(source, self.data_root, download=not self.dry)

    def report_missing(self, console: Console) -> int:
        """Print what could not be made for want of data; returns the exit code that this makes."""
        for how in self.imagined.values():
            console.print(Text(how, style="yellow"), soft_wrap=True)
        for what, why in self.missing.items():
            console.print(Text(f"{what} left out: {why}", style="yellow"), soft_wrap=True)
        return 1 if self.missing else 0
