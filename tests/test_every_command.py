"""What holds for every command line: bounds of numbers, paths that the system refuses, terminals without UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import encodings
import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from benchmark.cli.app import LONGEST_WORD, make_app
from benchmark.cli.terminal import ERRORS, spell_characters
from tests.commands import (
    TIMEOUT,
    arguments,
    environment,
    files_under,
    records_in,
    run_here,
    small_dataset,
    small_table,
)

COMMANDS = (
    "benchmark.run",
    "benchmark.tune",
    "benchmark.speed",
    "benchmark.decisions",
    "benchmark.catalogue",
    "benchmark.audit",
    "benchmark.report",
    "benchmark.merge",
    "benchmark.export",
    "benchmark.faithfulness",
    "benchmark.probe",
    "slurm.status",
    "slurm.retry",
    "slurm.cancel",
)


def refusal(*command: str, module: str = "benchmark.run", folder: Path | None = None) -> str:
    """The one line that a command is refused with."""
    ended = run_here(*command, module=module, folder=folder)
    assert ended.returncode == 2, ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 1000
    return line


def numbers() -> Iterator[tuple[str, list[str], str, str]]:
    """Each option that takes a number: its module, what goes before it, its name, and its upper bound."""
    for module in COMMANDS:
        opened = importlib.import_module(module)
        opened = importlib.import_module(f"{module}.__main__") if hasattr(opened, "__path__") else opened
        command = typer.main.get_command(make_app(opened.main))
        for name, each in getattr(command, "commands", {"": command}).items():
            for parameter in each.params:
                if parameter.type_descriptor.annotation in (int, float):
                    bound = "" if parameter.max is None else f"{parameter.max}".removesuffix(".0")
                    yield module, [name] if name else [], parameter.opts[0], bound


@pytest.mark.parametrize(("module", "before", "option", "bound"), list(numbers()))
def test_every_number_has_a_bound_that_is_told(module: str, before: list[str], option: str, bound: str) -> None:
    assert bound
    for value in ("1" + "0" * 20, "1" * 400, "1" * 5000, "1e400", "nan", "-1e400", "[" * 1000):
        line = refusal(*before, option, value, module=module)
        assert option in line
        if value == "1" + "0" * 20:
            assert f"less than or equal to {bound}" in line.replace(".0", "")


@pytest.mark.parametrize("field", ["KD.temperature", "LSSKD.alpha", "protocol.batch_size", "protocol.learning_rate"])
def test_a_value_of_set_that_is_absurd_is_refused_in_one_line(field: str) -> None:
    for value in ("1" * 5000, "[" * 100_000, "{" * 100_000, "1e400", "1" * 400, '"' * 5000):
        line = refusal("--table", "II", "--dry-run", "--methods", "KD,LSSKD", "--set", f"{field}={value}")
        assert f"{field.partition('.')[2]} = " in line


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--device", f"cuda:{'1' * 5000}"], "unknown device"),
        (["--device", "cuda:²"], "unknown device 'cuda:²'; allowed: auto, cpu, cuda, cuda:N"),
        (["--epochs", "9999"], "is more than protocol lsskd has; allowed: 1 to 240"),
    ],
)
def test_other_numbers_are_bounded_too(command: list[str], said: str) -> None:
    assert said in refusal("--table", "II", "--dry-run", *command)


def test_a_grid_of_too_many_combinations_is_refused() -> None:
    values = ",".join(map(str, range(1, 102)))
    grid = f"temperature={values},kd_weight={values},ce_weight={values}"
    line = refusal("--method", "KD", "--grid", grid, module="benchmark.tune")
    assert line == "error: --grid has 1,030,301 combinations; allowed: at most 1,000"


PATHS: tuple[tuple[str, list[str]], ...] = (
    ("benchmark.run", ["--dry-run", "--table", "{}"]),
    ("benchmark.run", ["--dry-run", "--table", "{}.toml"]),
    ("benchmark.run", ["--dry-run", "--figure", "{}.toml"]),
    ("benchmark.run", ["--dry-run", "--table", "II", "--teacher-checkpoint", "WRN-40-2={}"]),
    ("benchmark.run", ["--table", "II", "--scale", "paper", "--data-root", "{}"]),
    ("benchmark.run", ["--dry-run", "--table", "II", "--dataset", "{}.toml"]),
    ("benchmark.run", ["--dry-run", "--table", "II", "--runs", "{}"]),
    ("benchmark.run", ["--dry-run", "--table", "II", "--reports", "{}"]),
    ("benchmark.run", ["--dry-run", "--table", "II", "--executor", "slurm", "--profile", "{}"]),
    ("benchmark.tune", ["--method", "KD", "--grid", "temperature=1", "--runs", "{}"]),
    ("benchmark.tune", ["--method", "KD", "--grid", "temperature=1", "--reports", "{}"]),
    ("benchmark.tune", ["--method", "KD", "--grid", "temperature=1", "--dataset", "{}.toml"]),
    ("benchmark.audit", ["--runs", "{}"]),
    ("benchmark.audit", ["--claims", "{}"]),
    ("benchmark.audit", ["--reports", "{}"]),
    ("benchmark.report", ["--runs", "{}"]),
    ("benchmark.report", ["--reports", "{}"]),
    ("benchmark.report", ["--table", "{}.toml"]),
    ("benchmark.merge", ["{}"]),
    ("benchmark.merge", [".", "--runs", "{}"]),
    ("benchmark.export", ["{}", "--onnx"]),
    ("benchmark.export", ["x", "--onnx", "--output", "{}.onnx"]),
    ("benchmark.export", ["x", "--onnx", "--runs", "{}"]),
    ("benchmark.faithfulness", ["--runs", "{}"]),
    ("benchmark.faithfulness", ["--reports", "{}"]),
    ("benchmark.probe", ["{}"]),
    ("benchmark.probe", ["x", "--runs", "{}"]),
    ("slurm.status", ["--runs", "{}"]),
    ("slurm.retry", ["--failed", "--runs", "{}"]),
    ("slurm.cancel", ["--runs", "{}"]),
)
REFUSED_PATHS = ("too long", "zero byte", "loop", "below a file", "no permission")


def make_refused_path(kind: str, folder: Path) -> str:
    """A path in a folder that the system refuses."""
    if kind == "too long":
        return str(folder / ("a" * 300))
    if kind == "zero byte":
        return str(folder / "a\0b")
    if kind == "loop":
        for ending in ("", ".toml", ".onnx"):
            (folder / f"loop{ending}").symlink_to(folder / f"loop{ending}")
        return str(folder / "loop")
    if kind == "below a file":
        (folder / "file").write_text("")
        return str(folder / "file" / "x")
    (folder / "locked").mkdir(mode=0)
    return str(folder / "locked" / "x")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write, all through its path."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Within it, an administrator is somebody who may not read everything."""
    is_administrator = os.geteuid() == 0
    if is_administrator:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_administrator:
            os.seteuid(0)
            forget_missing_codecs()


def forget_missing_codecs() -> None:
    """Let Python search again for the codecs that it did not find.

    The interpreter may lie in an administrator's home, which nobody else may read. Python remembers a failed
    search, and every figure that this process draws afterwards would fail.
    """
    found: dict[str, codecs.CodecInfo | None] = vars(encodings)["_cache"]
    for name in [name for name, codec in found.items() if codec is None]:
        del found[name]


@pytest.mark.parametrize("kind", REFUSED_PATHS)
@pytest.mark.parametrize(("module", "command"), PATHS)
def test_a_path_that_the_system_refuses_is_one_line(
    open_folder: Path, kind: str, module: str, command: list[str]
) -> None:
    path = make_refused_path(kind, open_folder)
    with without_privileges():
        line = refusal(*(word.format(path) for word in command), module=module, folder=open_folder)
    assert "a" * (LONGEST_WORD + 1) not in line
    assert not list(open_folder.glob("runs")) + list(open_folder.glob("reports"))


def test_an_error_of_the_system_names_the_option_that_gave_the_path(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300)
    for command in (["--runs", str(path)], [f"--runs={path}"]):
        assert "(from --runs) cannot be used: File name too long; name another path" in refusal(
            *command, module="benchmark.audit", folder=tmp_path
        )


@functools.cache
def usual_outcome(module: str, *command: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What a command does in an empty folder where the terminal knows all characters: its outcome and its files."""
    with tempfile.TemporaryDirectory() as name:
        return run_here(*command, module=module, folder=Path(name)), files_under(Path(name))


SHOWN: tuple[tuple[str, list[str]], ...] = (
    ("benchmark.run", ["--help"]),
    ("benchmark.run", ["--list"]),
    ("benchmark.run", ["--list", "LSSKD"]),
    ("benchmark.run", ["--table", "II", "--dry-run"]),
    ("benchmark.audit", []),
    # Of no runs: the curves of those that the suite brings would be drawn three times.
    ("benchmark.report", ["--runs", "."]),
    ("benchmark.merge", ["."]),
    ("benchmark.export", ["\N{LATIN SMALL LETTER U WITH DIAERESIS}", "--onnx"]),
    ("slurm.status", []),
)


@pytest.mark.parametrize(
    ("encoding", "module", "command"),
    [
        pytest.param(
            encoding, *shown, marks=pytest.mark.slow if (encoding, shown[0]) == ("latin-1", "benchmark.report") else ()
        )
        for encoding in ("ascii", "latin-1")
        for shown in SHOWN
    ],
)
def test_a_terminal_without_utf_8_loses_characters_and_no_files(
    tmp_path: Path, module: str, command: list[str], encoding: str
) -> None:
    ended = run_here(*command, module=module, folder=tmp_path, encoding=encoding)
    usual, files = usual_outcome(module, *command)
    assert ended.returncode == usual.returncode
    assert (ended.stdout + ended.stderr).isascii() or encoding != "ascii"
    assert len(ended.stdout.splitlines()) == len(usual.stdout.splitlines())
    assert files_under(tmp_path) == files


def test_what_cannot_be_shown_is_spelt() -> None:
    codecs.register_error(ERRORS, spell_characters)
    text = "54.5 ± 0.1 \N{EN DASH} \N{MINUS SIGN}3 \N{MULTIPLICATION SIGN} λ² Σ ≥ ΔÄöß “x” │─ ⠋ 漢 \udcc3"
    assert text.encode("ascii", ERRORS) == b'54.5 +- 0.1 - -3 x lambda^2 Sigma >= DeltaAoss "x" |- . ? ?'
    assert "± λ".encode("latin-1", ERRORS) == "± lambda".encode("latin-1")


def test_a_locale_without_utf_8_trains_and_renders_in_folders_of_any_name(tmp_path: Path) -> None:
    small_dataset(tmp_path)
    command = arguments(small_table(tmp_path, ["Baseline"]), tmp_path / "größe", epochs=1)
    told_of_imports = {"PYTHONPROFILEIMPORTTIME": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "benchmark.run", *command],
        capture_output=True,
        env=environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **told_of_imports},
        cwd=tmp_path,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout + ended.stderr).isascii()
    assert b"benchmark.training.learner" in ended.stderr
    slow_to_import = (b"torch._dynamo", b"scipy.stats", b"sklearn", b"onnxruntime", b"matplotlib")
    assert not [name for name in slow_to_import if name in ended.stderr], (
        "a small table needs none, and each takes long"
    )
    assert [record["status"] for record in records_in(tmp_path / "größe").values()] == ["finished"]
    assert len(list((tmp_path / "größe" / "reports").iterdir())) > 3
