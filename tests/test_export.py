"""Exporting a student: the files are the network that was trained, and what is said of them is so."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import typer
from PIL import Image
from torch import Tensor, nn

from benchmark.backbones import build_network
from benchmark.backbones.network import Network
from benchmark.cli.app import make_app, run_app
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import evaluation_batches
from benchmark.data.dataset import Images
from benchmark.export import Edge, exporting, load_edge
from benchmark.export.__main__ import format_milliseconds, main
from benchmark.export.edge import ROUNDINGS, TOLERANCE, compute_logits, open_session, quantise, to_onnx
from benchmark.export.exporting import ExportSubject, select_images
from benchmark.results.record import Record
from benchmark.results.store import Store
from benchmark.training.inputs import recipe_for, select_training_data
from benchmark.training.job import run_until_done
from tests import engine
from tests.commands import ROOT, files_under, run_command, small_dataset
from tests.onnx_files import by_hand, changed


@dataclass
class Ended:
    """How an export ended, and what it printed."""

    code: int
    out: str
    err: str


def export(*command: str) -> Ended:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["__main__.py", *command]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            run_app(main, "python -m benchmark.export")
    finally:
        sys.argv = before
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@dataclass
class Exported:
    """A run that was trained and exported."""

    runs: Path
    run: Run
    ended: Ended
    calibration: Tensor
    """The images that the int8 file was calibrated on."""

    @property
    def folder(self) -> Path:
        return Store(self.runs).folder(self.run)

    @property
    def record(self) -> Record:
        record = Store(self.runs).record(self.run)
        assert record is not None
        return record

    @property
    def edge(self) -> Edge:
        found = load_edge(self.folder)
        assert found is not None
        return found

    def network(self) -> Network:
        network = build_network(self.run.student, 10)
        network.load_state_dict(safetensors.torch.load_file(self.folder / "student.safetensors"))
        return network.eval()

    def test_images(self) -> tuple[Tensor, Tensor]:
        digits = load_dataset("digits")
        ((images, labels),) = evaluation_batches(digits.test, recipe_for(self.run.protocol, digits), 1000, "cpu")
        return images.contiguous(), labels


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student that was trained with branches on it, which are not to be exported."""
    runs = tmp_path_factory.mktemp("export") / "runs"
    run = engine.request().run("LSSKD", "ResNet8", None, 0).replace(fraction=0.3)
    assert run_until_done([run], engine.settings(runs))
    seen: list[np.ndarray] = []

    def watched(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
        seen.append(images)
        return quantise(model, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "quantise", watched)
        ended = export(run.id, "--onnx", "--runs", str(runs), "--seconds", "0.02")
    assert (ended.code, ended.err) == (0, "")
    return Exported(runs, run, ended, torch.from_numpy(np.concatenate(seen)))


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Exported:
    """The same run elsewhere, not exported yet, to be tampered with."""
    shutil.copytree(exported.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("*.onnx", "edge.json"))
    return dataclasses.replace(exported, runs=tmp_path / "runs")


def pixels_of(images: Images) -> Tensor:
    """All images of a set, uint8 [images, size, size, 3]."""
    return torch.cat([batch for batch, _ in images.batches(1000)])


def test_the_file_gives_the_training_networks_logits_for_any_batch(exported: Exported) -> None:
    images, _ = exported.test_images()
    with torch.no_grad():
        expected = exported.network()(images).logits
    session = open_session((exported.folder / "student.onnx").read_bytes())
    logits = exported.edge["logits"]
    for batch in (1, 3, 64, len(images)):
        given = torch.from_numpy(compute_logits(session, images[:batch].numpy()))
        torch.testing.assert_close(given, expected[:batch], rtol=0, atol=logits["allowed"])
    assert logits["images"] == len(images)
    assert logits["largest"] == pytest.approx(expected.abs().max().item())
    # Float32 itself may be coarser than the limit, which depends on the processor that trained the student.
    assert logits["difference"] <= logits["allowed"] == max(TOLERANCE, ROUNDINGS * logits["rounding"]) < 1e-4
    assert f"logits: at most {logits['difference']:.1e} from the training network's" in exported.ended.out


def test_parameters_and_multiply_adds_are_those_of_the_plain_network(exported: Exported) -> None:
    network = exported.network()
    assert exported.edge["parameters"] == sum(weights.numel() for weights in network.parameters())
    assert exported.edge["multiply_adds"] == by_hand(network, 8)
    assert f"parameters: {exported.edge['parameters']:,} in the file, exactly as in the Baseline ResNet8" in (
        exported.ended.out
    )


def test_the_accuracies_are_those_of_the_files_on_all_test_images(exported: Exported) -> None:
    images, labels = exported.test_images()
    edge = exported.edge
    for kind, name in (("fp32", "student.onnx"), ("int8", "student-int8.onnx")):
        session = open_session((exported.folder / name).read_bytes())
        order = (-compute_logits(session, images.numpy())).argsort(1, kind="stable")
        hits = order[:, :5] == labels.numpy()[:, None]
        assert edge[kind]["top1"] == pytest.approx(100 * hits[:, 0].mean())
        assert edge[kind]["top5"] == pytest.approx(100 * hits.any(1).mean())
        assert (exported.folder / name).stat().st_size == edge[kind]["bytes"]
    assert edge["evaluation_images"] == len(labels)
    assert edge["fp32"]["top1"] == pytest.approx(exported.record["final"]["top1"], abs=0.5)
    assert edge["fp32"]["top1"] > 60, "the student has learned nothing, and nothing can be lost"
    assert edge["loss"]["top1"] == edge["fp32"]["top1"] - edge["int8"]["top1"]
    assert abs(edge["loss"]["top1"]) < 5
    assert edge["int8"]["bytes"] < edge["fp32"]["bytes"] / 2


def test_latencies_are_ordered_and_were_repeated(exported: Exported) -> None:
    for kind in ("fp32", "int8"):
        assert set(exported.edge[kind]["latency"]) == {"1", "64"}
        for times in exported.edge[kind]["latency"].values():
            assert 0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"]
            assert times["repeats"] >= 5
        assert exported.edge[kind]["latency"]["64"]["median_ms"] > exported.edge[kind]["latency"]["1"]["median_ms"]
    assert exported.edge["threads"] == 1
    assert exported.edge["processor"] in exported.ended.out


@pytest.mark.parametrize(
    ("time", "text"), [(0.05438, "0.0544"), (1.0, "1.00"), (9.996, "10.00"), (67.84, "67.8"), (4543.2, "4,543")]
)
def test_times_are_printed_to_three_digits(time: float, text: str) -> None:
    assert format_milliseconds(time) == text


def test_the_metadata_tell_how_to_feed_the_file(exported: Exported) -> None:
    digits = load_dataset("digits")
    for name, precision in (("student.onnx", "fp32"), ("student-int8.onnx", "int8")):
        model = onnx.load_model(exported.folder / name)
        notes = {note.key: note.value for note in model.metadata_props}
        assert json.loads(notes["mean"]) == list(digits.mean)
        assert json.loads(notes["std"]) == list(digits.std)
        assert json.loads(notes["classes"]) == list(digits.classes)
        assert (notes["num_classes"], notes["image_size"]) == ("10", "8")
        assert (notes["precision"], notes["run"]) == (precision, exported.run.id)
        for value, expected in ((model.graph.input, ["batch", 3, 8, 8]), (model.graph.output, ["batch", 10])):
            (only,) = value
            assert [part.dim_param or part.dim_value for part in only.type.tensor_type.shape.dim] == expected
        assert str(exported.runs).encode() not in model.SerializeToString()
        assert str(ROOT).encode() not in model.SerializeToString()
    assert "less (0.3053, 0.3053, 0.3053), over (0.3758, 0.3758, 0.3758)" in exported.ended.out
    assert "10 classes of digits" in exported.ended.out


def test_the_pages_example_names_the_class_that_the_network_sees(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, (images, _) = load_dataset("digits"), exported.test_images()
    with torch.no_grad():
        seen = exported.network()(images).logits.argmax(1)
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    shutil.copy(exported.folder / "student.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    for number in (0, 100, 200):
        Image.fromarray(pixels_of(digits.test)[number].numpy()).save("photo.png")
        values: dict[str, Any] = {"__name__": "example"}
        exec(code, values)
        np.testing.assert_allclose(values["images"], images[number : number + 1].numpy(), atol=1e-6)
        assert capsys.readouterr().out == f"{digits.classes[seen[number]]}\n"


def test_the_page_names_every_figure_and_every_option(exported: Exported) -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    figures = page.split("## The figures")[1]
    edge = exported.edge
    for part in (edge, edge["logits"], edge["fp32"], edge["fp32"]["latency"], edge["fp32"]["latency"]["1"]):
        for field in set(part) - {"format"}:
            assert f"`{field}`" in figures, field
    options = {name for part in typer.main.get_command(make_app(main)).params for name in part.opts}
    assert options - {"run"} == set(re.findall(r"^\| `(--\S+)`", page, flags=re.MULTILINE))


def test_an_export_repeated_in_another_process_gives_the_same_files(copied: Exported, exported: Exported) -> None:
    ended = run_command(str(copied.folder), "--onnx", "--seconds", "0.01", "--threads", "2", module="benchmark.export")
    assert (ended.returncode, ended.stderr) == (0, "")
    for name in ("student.onnx", "student-int8.onnx"):
        assert (copied.folder / name).read_bytes() == (exported.folder / name).read_bytes()
    assert copied.edge["threads"] == 2
    assert copied.edge["provenance"]["command"].startswith("python -m benchmark.export PATH --onnx")
    assert "host" not in copied.edge["provenance"]
    assert copied.edge["int8"]["sha256"] == exported.edge["int8"]["sha256"]


def test_the_output_goes_where_it_is_named_and_the_figures_to_the_run(copied: Exported, tmp_path: Path) -> None:
    place = tmp_path / "device" / "small.onnx"
    command = [str(copied.folder / "record.json"), "--onnx", "--output", str(place), "--seconds", "0.01"]
    ended = export(*command, "--image-size", "12")
    assert ended.code == 0, ended.err
    assert files_under(tmp_path / "device") == ["small-int8.onnx", "small.onnx"]
    assert not (copied.folder / "student.onnx").exists()
    edge = copied.edge
    assert (edge["fp32"]["file"], edge["int8"]["file"]) == (str(place), str(place.with_name("small-int8.onnx")))
    assert (edge["image_size"], edge["image_size_of_dataset"]) == (12, 8)
    assert edge["multiply_adds"] == by_hand(copied.network(), 12)
    assert "scaled from 8x8" in ended.out
    images, labels = copied.test_images()
    large = nn.functional.interpolate(images, (12, 12), mode="bilinear")
    with torch.no_grad():
        right = (copied.network()(large).logits.argmax(1) == labels).float().mean().item()
    assert edge["fp32"]["top1"] == pytest.approx(100 * right, abs=0.5)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("epsilon", "the logits of the ONNX file differ from those of the training network by "),
        ("one weight", "the logits of the ONNX file differ from those of the training network by "),
        ("not a number", "the logits of the ONNX file differ from those of the training network by inf"),
        ("a branch", "the ONNX file has 78,682 parameters, and ResNet8 has 78,042"),
        ("a layer", "the ONNX file has 809,600 multiply-adds, and ResNet8 has 781,952"),
    ],
)
def test_a_file_that_is_not_the_network_is_told_and_not_written(
    copied: Exported, monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setattr(exporting, "to_onnx", lambda network, size: changed(to_onnx(network, size), how))
    before = files_under(copied.runs)
    ended = export(copied.run.id[:20], "--onnx", "--runs", str(copied.runs))
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {said}")
    assert line.endswith("nothing was written")
    assert files_under(copied.runs) == before


def pixels(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_int8_file_is_calibrated_on_what_the_run_learned_from(exported: Exported) -> None:
    shown = select_images(exported.run, "", None, None)
    learned = torch.cat([batch for batch, _ in shown.batches(shown.train)])
    assert len(shown.train) < len(shown.dataset.train)
    assert pixels(exported.calibration) <= pixels(learned)
    assert exported.edge["calibration_images"] == len(exported.calibration) == len(learned) < 500


def test_some_images_are_the_same_share_of_each_class_from_a_stream_of_their_own() -> None:
    shown = select_images(engine.run_of("Baseline").replace(fraction=0.5), "", None, None)
    everything = torch.cat([batch for batch, _ in shown.batches(shown.train)])
    labels = {image.numpy().tobytes(): int(label) for image, label in zip(everything, shown.train.labels, strict=True)}
    chosen = shown.some(shown.train, 100, "one")
    counts = np.bincount([labels[image.numpy().tobytes()] for image in chosen])
    assert counts.sum() == pytest.approx(100, abs=5)
    assert counts.max() - counts.min() <= 2
    assert pixels(shown.some(shown.train, 100, "one")) == pixels(chosen)
    assert pixels(shown.some(shown.train, 100, "another")) != pixels(chosen)


def test_a_run_of_tuning_is_measured_on_what_it_held_out() -> None:
    run = engine.run_of("Baseline", validation=0.2)
    images = select_images(run, "", None, None)
    data = select_training_data(run, images.dataset)
    for ours, theirs in ((images.evaluation, data.evaluation), (images.train, data.train)):
        assert torch.equal(pixels_of(ours), pixels_of(theirs))


def test_more_classes_than_images_wanted_still_give_few_images() -> None:
    digits = load_dataset("digits")
    images = ExportSubject(digits, recipe_for(engine.SHORT, digits), 8, digits.train, digits.test)
    assert len(images.some(digits.test, 3, "few")) == 5


RUN = "LSSKD_ResNet8"


@pytest.mark.parametrize(
    ("changes", "command", "said"),
    [
        ({}, [], "missing argument 'RUN'; see python -m benchmark.export --help"),
        ({}, [RUN], "which format? pass --onnx, or --hub DIR"),
        ({}, ["LSKD_ResNet8", "--onnx"], "no run 'LSKD_ResNet8' (did you mean LSSKD_ResNet8_0.3_test_seed0-"),
        ({}, [RUN, "--onnx", "--runs", "nowhere"], "one of the 0 runs in nowhere; name one, or their folder with"),
        ({"fingerprint": "0" * 64}, [RUN, "--onnx"], "dataset digits is not the one that LSSKD_ResNet8_"),
        ({"dataset": "leaves"}, [RUN, "--onnx"], "was trained on 'leaves', a dataset of your own; pass --dataset"),
        ({"dataset": "cifar100"}, [RUN, "--onnx", "--data-root", "empty"], "no CIFAR-100 in empty"),
        ({"student": "ResNet20"}, ["LSSKD", "--onnx"], "are not those of ResNet20 for 10 classes"),
        ({}, [RUN, "--onnx", "--dataset", "blocks.toml"], "was trained on 'digits', not on 'blocks'"),
        ({}, [RUN, "--onnx", "--dataset", "gone.toml"], "dataset file gone.toml cannot be read: No such file"),
        ({}, [RUN, "--onnx", "--image-size", "0"], "'--image-size': Input should be greater than or equal to 8"),
        ({}, [RUN, "--onnx", "--image-size", "large"], "'--image-size': Input should be a valid integer"),
        ({}, [RUN, "--onnx", "--seconds", "0"], "'--seconds': Input should be greater than or equal to 0.01"),
        ({}, [RUN, "--onnx", "--threads", "0"], "'--threads': Input should be greater than or equal to 1"),
        ({}, [RUN, "--onnx", "--output", "student.pb"], "--output student.pb is no name of an ONNX file"),
        ({}, [RUN, "--onnx", "--output", "blocks.toml/a.onnx"], "blocks.toml is no folder; choose another folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(
    copied: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    command: list[str],
    said: str,
) -> None:
    small_dataset(tmp_path)
    load_dataset(str(tmp_path / "blocks.toml"))
    monkeypatch.chdir(tmp_path)
    if changes:
        # As if the run had been another one.
        record = {"status": "finished", "final": {"top1": 1.0}, "provenance": {}}
        weights = safetensors.torch.load_file(copied.folder / "student.safetensors")
        Store(copied.runs).finish(copied.run.replace(**changes), record, {"student": weights})
        shutil.rmtree(copied.folder)
    before = files_under(tmp_path)
    ended = export(*command)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert files_under(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("option", ["--output", "--runs"])
def test_a_folder_that_may_not_be_written_is_refused(copied: Exported, tmp_path: Path, option: str) -> None:
    closed = copied.folder if option == "--runs" else tmp_path / "closed"
    closed.mkdir(exist_ok=True)
    output = ["--output", str(closed / "a.onnx")] if option == "--output" else []
    closed.chmod(0o500)
    try:
        ended = export(str(copied.folder), "--onnx", *output)
    finally:
        closed.chmod(0o700)
    assert ended.code == 2
    assert f"{closed} may not be written; choose another folder with {option}" in ended.err
