"""The description of a folder of runs for archives."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.report.crate import FILE, describe_folder, main
from benchmark.results.store import Store
from tests.report_records import request, write


def test_a_folder_is_described_so_that_a_reader_finds_every_record_whole(tmp_path: Path) -> None:
    rocrate = pytest.importorskip("rocrate.rocrate")
    for seed in (0, 1):
        write(tmp_path, request().run("KD", "WRN-16-2", "WRN-40-2", seed), 2)
    main(tmp_path, "Two runs", "https://creativecommons.org/licenses/by/4.0/")
    crate = rocrate.ROCrate(tmp_path)
    assert crate.name == "Two runs"
    assert crate.datePublished.isoformat().startswith("2026-01-02")
    files = [entity for entity in crate.data_entities if entity.type == "File"]
    assert len(files) == 2
    for entity in files:
        assert hashlib.sha256((tmp_path / entity.id).read_bytes()).hexdigest() == entity["sha256"]
        assert "KD, WRN-16-2 taught by WRN-40-2, seed" in entity["description"]
        assert entity["instrument"]["softwareVersion"] == "version 0.1.0, commit 0123456789ab"
    again = json.dumps(describe_folder(tmp_path, "Two runs"), sort_keys=True)
    assert again == json.dumps(describe_folder(tmp_path, "Two runs"), sort_keys=True)
    assert "secret-host-name" not in (tmp_path / FILE).read_text(encoding="utf-8")
    assert len(Store(tmp_path).read_all()[0]) == 2, "the file is no record"


def test_without_the_library_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    with pytest.raises(UserError, match=r"pip install 'kd-benchmark\[deposit\]'"):
        describe_folder(tmp_path)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("rocrate.rocrate")
    with pytest.raises(UserError, match="no record that can be read"):
        describe_folder(tmp_path)
