"""What a user gets wrong: one line that says so, exit code 2, and nothing started or written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmark import run as run_module
from benchmark import tune as tune_module
from benchmark.backbones import build_branches, build_network, network_names
from benchmark.cli.app import run_app
from benchmark.core.errors import UserError
from benchmark.data import load_dataset
from benchmark.io.files import check_writable, remove_leftovers, replacing, write_text
from benchmark.results.store import Store
from slurm.profile import EXAMPLE
from tables.specification import table_names
from tests.commands import arguments, environment, files_under, run_command, small_dataset, small_table
from tests.engine import run_of

COMMANDS = {"benchmark.run": run_module.main, "benchmark.tune": tune_module.main}


@dataclass
class Refusal:
    """How a command line that was refused ended."""

    code: int
    line: str
    said: str


@dataclass
class CommandLine:
    """Runs command lines in this process, in a folder that holds the small dataset and table."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def table(self) -> Path:
        return self.folder / "data" / "small.toml"

    def __call__(self, *more: str, module: str = "benchmark.run", table: bool = True) -> Refusal:
        """Run it, and check that what it says is one line and that it leaves nothing behind."""
        command = arguments(self.table, self.folder / "written", *more) if table else list(more)
        before = files_under(self.folder)
        self.monkeypatch.setattr(sys, "argv", [module, *command])
        with pytest.raises(SystemExit) as ended:
            run_app(COMMANDS[module], f"python -m {module}")
        said = self.capsys.readouterr()
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        assert "started" not in said.out
        assert not (self.folder / "written").exists()
        assert files_under(self.folder) == before
        return Refusal(int(ended.value.code or 0), line, said.out)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> CommandLine:
    data = tmp_path / "data"
    data.mkdir()
    small_dataset(data)
    small_table(data)
    load_dataset(str(data / "blocks.toml"))  # Its cache is no part of what a refused command leaves.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    # On a busy machine a second is soon over, and the word on a slow plan is no part of a refusal.
    monkeypatch.setattr("benchmark.execution.progress.SLOW_SECONDS", 600)
    return CommandLine(tmp_path, monkeypatch, capsys)


NETWORKS = f"allowed: {', '.join(network_names())}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--methods", "LSSDK"],
            "unknown method 'LSSDK' (did you mean 'LSSKD'?); allowed: Baseline, KD",
        ),
        (["--methods", "SSKD-head"], "unknown method 'SSKD-head' (did you mean "),
        (["--augment", "cutmx"], "unknown augmentation 'cutmx' (did you mean 'cutmix'?); allowed: standard, cutout"),
        (
            ["--pairs", "ResNet20>ResNet21"],
            "unknown pair of table small 'ResNet20>ResNet21' (did you mean 'ResNet20>ResNet20'?); "
            "allowed: ResNet20>ResNet20; any other pair goes into a table file of your own",
        ),
        (
            ["--teacher-checkpoint", "Resnet20=x.pth"],
            f"unknown network 'Resnet20' (did you mean 'ResNet20'?); {NETWORKS}",
        ),
        (["--teacher-checkpoint", "ResNet56=x.pth"], "unknown teacher of table small 'ResNet56'"),
        (["--teacher-checkpoint", "ResNet20=x.pth"], "there is no checkpoint x.pth"),
        (["--teacher-checkpoint", "ResNet20"], "not of the form NETWORK=FILE, such as"),
        (
            ["--teacher-checkpoint", "ResNet20=x", "--teacher-checkpoint", "ResNet20=y"],
            "--teacher-checkpoint names a file for ResNet20 twice",
        ),
        (["--dataset", "digit"], "unknown dataset 'digit' (did you mean 'digits'?); allowed: digits, cifar100"),
        (["--dataset", "absent.toml"], "dataset file absent.toml cannot be read: No such file"),
        (["--scale", "dmeo"], "unknown scale 'dmeo' (did you mean 'demo'?); allowed: demo, quick, paper"),
        (["--protocol", "lskd"], "unknown protocol 'lskd' (did you mean 'lsskd'?); allowed: lsskd, crd, sskd"),
        (["--precision", "fp16"], "'--precision': 'fp16' is not one of 'auto', 'fp32', 'bf16'"),
        (["--device", "gpu"], "unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:N"),
        (["--device", "cuda:99"], "device 'cuda"),
        (["--set", "KD.temperatur=4"], "unknown option of KD 'temperatur' (did you mean 'temperature'?); allowed: ce_"),
        (["--set", "KD.temperature=-1"], "KD: temperature = -1 is refused: input should be greater than 0"),
        (["--set", "KD.temperature=warm"], "KD: temperature = 'warm' is refused: input should be a valid number"),
        (["--set", "KD.kd_weight=nan"], "KD: kd_weight = 'nan' is refused"),
        (["--set", "LSSKD.alpha=1.5"], "LSSKD: alpha = 1.5 is refused: input should be less than or equal to 1"),
        (["--set", "LSSKD.source=head"], "LSSKD: source = 'head' is refused: input should be"),
        (["--set", "kd.temperature=4"], "unknown method 'kd' (did you mean 'KD'?); allowed: AB, AT, BYOT, Baseline"),
        (["--set", "temperature=4"], "--set 'temperature=4' is not of the form METHOD.option=value"),
        (["--set", "KD.temperature"], "--set 'KD.temperature' is not of the form METHOD.option=value"),
        (["--set", "="], "--set '=' is not of the form METHOD.option=value"),
        (["--set", "protocol.momentun=1"], "unknown field of the protocol 'momentun' (did you mean 'momentum'?)"),
        (["--set", "protocol.momentum=1"], "protocol lsskd: momentum = 1 is refused: input should be less than 1"),
        (["--epochs", "ten"], "'--epochs': Input should be a valid integer"),
        (["--epochs", "0"], "'--epochs': Input should be greater than or equal to 1"),
        (["--epochs", "241"], "--epochs 241 is more than protocol lsskd has; allowed: 1 to 240"),
        (["--seeds", "0"], "'--seeds': Input should be greater than or equal to 1"),
        (["--workers", "-1"], "'--workers': Input should be greater than or equal to 1"),
        (["--validation", "1"], "'--validation': Input should be less than or equal to 0.9"),
        (["--teacher-seeds", "own"], "'own' is not one of 'shared', 'paired'; see python -m benchmark.run --help"),
        (["--tabel", "II"], "no such option: --tabel (Possible options: "),
        (["--epochs"], "option '--epochs' requires an argument"),
        (["everything"], "unexpected argument 'everything'; only --list takes a name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_nothing_happens(refused, given, said) -> None:
    refusal = refused(*given)
    assert refusal.code == 2
    assert said in refusal.line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--executor", "farm"], "'farm' is not one of 'local', 'debug', 'slurm'"),
        (["--executor", "slurm"], "--executor slurm needs --profile FILE; "),
        (["--executor", "slurm", "--profile", "x.toml"], "profile x.toml cannot be read: No such file or directory; "),
        (
            ["--executor", "slurm", "--profile", "x.toml", "--workers", "2"],
            "--workers does not apply to --executor slurm",
        ),
        (["--executor", "slurm", "--profile", str(EXAMPLE), "--device", "cpu"], "this profile train on cuda"),
        (["--profile", "x.toml"], "--profile only applies to --executor slurm, not to local; pass --executor slurm"),
        (["--no-wait"], "--no-wait only applies to --executor slurm, not to local; pass --executor slurm"),
        (["--executor", "debug", "--workers", "2"], "--executor debug trains in this process; leave --workers out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_another_executor_are_refused(refused, given, said) -> None:
    refusal = refused("--table", str(refused.table), *given, table=False)
    assert refusal.code == 2
    assert said in refusal.line


def test_an_unknown_table_is_named_with_the_known_ones(refused) -> None:
    refusal = refused("--table", "V", table=False)
    assert refusal.code == 2
    assert refusal.line.startswith("error: unknown table 'V' (did you mean 'IV'?); allowed: I, II, III, IV, ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "KD"], "KD needs a teacher, which no column of table III has; choose a table of pairs"),
        (
            ["--augment", "cutout"],
            "row Baseline+COC has an augmentation of its own, cutout+cutmix; leave --augment out",
        ),
        (["--pairs", "ResNet56>ResNet20"], "unknown pair of table III 'ResNet56>ResNet20'"),
        (["--teacher-checkpoint", "ResNet56=x.pth"], "unknown teacher of table III 'ResNet56'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_table_without_teachers_cannot_do_is_refused(refused, given, said) -> None:
    refusal = refused("--table", "III", *given, table=False)
    assert refusal.code == 2
    assert said in refusal.line


def test_no_arguments_at_all_ask_for_a_table(refused) -> None:
    refusal = refused(table=False)
    assert refusal.code == 2
    assert f"pass --table with one of: {', '.join(table_names())}, all, or a TOML file" in refusal.line


@pytest.mark.parametrize("networks", [("ResNet21", "ResNet20"), ("ResNet20", "ResNet21")])
def test_a_table_with_an_unknown_network_is_refused(refused, networks) -> None:
    small_table(refused.table.parent, ["Baseline", "KD"], *networks)
    refusal = refused()
    assert refusal.code == 2
    assert (
        "unknown network of table small 'ResNet21' (did you mean 'ResNet20'?): its depth must be 6n + 2" in refusal.line
    )


@pytest.mark.parametrize("place", ["named", "default"])
def test_missing_cifar100_says_where_was_looked_and_the_ways_to_get_it(refused, place) -> None:
    # A file in the folder's place keeps the download from being tried.
    Path("data").rename("images-elsewhere")
    Path("data").write_text("")
    small_table(Path("images-elsewhere"), dataset="cifar100")
    table = ["--table", "images-elsewhere/small.toml", "--runs", "written", "--reports", "written"]
    refusal = refused(*table, *(["--data-root", "data"] if place == "named" else []), table=False)
    assert refusal.code == 2
    assert "no CIFAR-100 in data: neither cifar100/{train,test}/<class>/*.png nor cifar-100-python/ is" in refusal.line
    assert "downloading it failed (File exists)" in refusal.line
    assert "put class folders there, or unpack cifar-100-python.tar.gz there" in refusal.line


def test_a_damaged_image_is_named(refused) -> None:
    image = refused.folder / "data" / "images" / "train" / "green" / "3.png"
    image.write_bytes(image.read_bytes()[:40])
    refusal = refused()
    assert refusal.code == 2
    assert refusal.line == f"error: image {image} is damaged or no image; replace it or remove it"


@pytest.mark.parametrize("option", ["--runs", "--reports"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_is_a_file_is_refused_before_anything_starts(refused, option, below) -> None:
    file = refused.folder / "file"
    file.write_text("mine")
    refusal = refused(option, str(file / below))
    assert refusal.code == 2
    assert refusal.line == (
        f"error: cannot write {file / below}: {file} is no folder; choose another folder with {option}"
    )


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="an administrator may write everywhere")
def test_a_folder_without_permission_is_refused_before_anything_starts(refused) -> None:
    locked = refused.folder / "locked"
    locked.mkdir(mode=0o500)
    refusal = refused("--runs", str(locked / "runs"))
    assert refusal.code == 2
    assert f"{locked} may not be written; choose another folder with --runs" in refusal.line


def test_a_folder_on_a_file_system_that_cannot_be_written_is_refused(tmp_path, monkeypatch) -> None:
    # What the system answers for a read-only disk, also to an administrator.
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    with pytest.raises(UserError, match=r"runs: .* may not be written; choose another folder with --runs"):
        check_writable(tmp_path / "runs", "--runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["backbone", "branches"])
def test_a_teacher_that_does_not_fit_is_refused_with_the_wrong_names(refused, part) -> None:
    network, branches = build_network("ResNet20", 3).state_dict(), build_branches("ResNet20", 12).state_dict()
    (network if part == "backbone" else branches)["extra.weight"] = torch.zeros(3)
    (network if part == "backbone" else branches).pop("conv1.weight" if part == "backbone" else "fc2.bias")
    net = {f"backbone.{key}": value for key, value in network.items()}
    file = refused.folder / "teacher.pth"
    torch.save({"net": net | {f"auxiliary_classifier.{key}": value for key, value in branches.items()}}, file)
    refusal = refused("--teacher-checkpoint", f"ResNet20={file}")
    assert refusal.code == 2
    missing = "conv1.weight" if part == "backbone" else "fc2.bias"
    assert f"the checkpoint does not fit ResNet20: missing: {missing}; unexpected: extra.weight." in refusal.line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "LSSDK", "--grid", "alpha=1"], "unknown method 'LSSDK' (did you mean 'LSSKD'?)"),
        (["--method", "SSKD-head", "--grid", "alpha=1"], "unknown method 'SSKD-head' (did you mean "),
        (["--method", "LSSKD", "--grid", "alfa=1"], "unknown option of LSSKD 'alfa' (did you mean 'alpha'?)"),
        (["--method", "LSSKD", "--grid", "alpha=0.5,2"], "LSSKD: alpha = 2 is refused"),
        (["--method", "LSSKD", "--grid", "0.5"], "--grid '0.5' is not of the form option=value,value"),
        (["--method", "LSSKD", "--grid", "alpha=1", "--pair", "ResNet20"], "not of the form teacher>student"),
        (["--method", "LSSKD", "--grid", "alpha=1", "--runs", "data/small.toml"], "data/small.toml is no folder"),
        (["--grid", "alpha=1"], "missing option '--method'"),
    ],
)
def test_bad_input_to_tuning_is_one_line(refused, given, said) -> None:
    refusal = refused(*given, module="benchmark.tune", table=False)
    assert refusal.code == 2
    assert said in refusal.line


@pytest.mark.parametrize("damage", ["cut short", "not a record", "no figures", "another run's"])
def test_a_damaged_record_is_named(tmp_path, damage) -> None:
    run, store = run_of("Baseline"), Store(tmp_path)
    store.finish(run, {"status": "finished", "epochs": [], "final": {"top1": 50.0}, "provenance": {}}, {})
    path = store.folder(run) / "record.json"
    record = json.loads(path.read_text())
    assert store.record(run) == record
    texts = {
        "cut short": path.read_text()[:100],
        "not a record": "[]",
        "no figures": json.dumps({key: value for key, value in record.items() if key != "final"}),
        "another run's": json.dumps(record | {"digest": "0" * 64}),
    }
    path.write_text(texts[damage])
    with pytest.raises(UserError) as raised:
        store.record(run)
    assert str(raised.value).startswith(f"record {path} is damaged (")
    assert "the command that trained it puts it aside and trains the run again" in str(raised.value)


def test_a_process_told_what_is_wrong_ends_with_code_2(tmp_path) -> None:
    ended = run_command("--table", "V", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: unknown table 'V'")
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_no_half_written_files(tmp_path) -> None:
    small_dataset(tmp_path)
    command = arguments(small_table(tmp_path), tmp_path, "--methods", "Baseline")
    limit = 300_000
    # Larger than any text, smaller than the weights: the system refuses what a full disk would.
    ended = subprocess.run(
        [sys.executable, "-m", "benchmark.run", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ended.returncode == 2
    # A busy machine says first that it is planning.
    line = ended.stderr.splitlines()[-1]
    assert line.startswith(f"error: cannot write {tmp_path / 'runs'}")
    assert line.endswith("student.safetensors: File too large; free some space there or choose another folder")
    assert "Traceback" not in ended.stdout
    left = {Path(path).name for path in files_under(tmp_path / "runs")}
    assert left == {"run.json", "epochs.jsonl", "claim-000001.json"}
    assert "1 failed" in ended.stdout


def test_what_a_kill_left_half_written_is_removed_when_the_run_begins_again(tmp_path) -> None:
    run, store = run_of("Baseline"), Store(tmp_path)
    store.begin(run)
    with replacing(store.folder(run) / "student.safetensors") as file:
        file.temporary.write_bytes(b"half")
        left = file.temporary.with_name(f"{file.temporary.name}.tmp")
        left.write_bytes(b"half")
    store.begin(run)
    assert not left.exists()
    assert sorted(path.name for path in store.folder(run).iterdir()) == ["run.json", "student.safetensors"]


def test_only_temporary_files_are_leftovers(tmp_path) -> None:
    for name in ("record.json", "notes.tmp", ".record.json.0123abcd.tmp"):
        write_text(tmp_path / name, "")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "record.json"]
