"""Makes a teacher's atlas before the runs that read it: every process that needs it takes views that nobody makes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmark.core.devices import autocast, make_deterministic, placed, resolve_device
from benchmark.core.errors import UserError
from benchmark.core.spec import Precision, Run
from benchmark.data.augmentation import TrainingSource
from benchmark.data.dataset import ImageSet
from benchmark.data.views import make_view
from benchmark.io.files import remove_leftovers, write_text
from benchmark.results.leases import Lease, LeaseManager
from benchmark.results.provenance import anonymise, provenance
from benchmark.training.atlas import Atlas
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.inputs import (
    TrainingData,
    find_atlas,
    load_run_dataset,
    recipe_for,
    select_training_data,
    teacher_network,
)
from benchmark.training.settings import LogFn, Progress, ProgressCallback, StopFn, TrainSettings

WAIT_SECONDS = 1.0
REPORT_SECONDS = 0.5


def make_atlas(
    runs: Sequence[Run],
    settings: TrainSettings,
    leases: LeaseManager,
    stop: StopFn,
    on_progress: ProgressCallback,
    log: LogFn,
) -> bool:
    """Make what is missing or damaged of the atlas that runs of one cohort read; False if `stop` asked to leave before.

    A view takes one pass of the teacher over the images. Views that another process makes are waited for.

    Raises:
        CorruptRun: the teacher's weights are damaged.
        UserError: a logit does not fit half precision, or the disk is full.
    """
    reader = next((run for run in runs if run.teacher_outputs == "atlas"), None)
    if reader is None:
        return True
    data = select_training_data(reader, load_run_dataset(settings.dataset, settings.data_root))
    atlas = find_atlas(reader, data, settings)
    wanted = [view for view in range(atlas.views) if atlas.find(view) is None]
    if not wanted:
        return True
    log(f"making the atlas of teacher {reader.teacher_network}: {len(wanted)} of {atlas.views} views are missing")
    maker = _Maker(reader, data, settings, on_progress)
    while wanted:
        left = []
        for view in wanted:
            lease = leases.acquire(atlas.view_folder(view))
            if not isinstance(lease, Lease):
                left.append(view)
                continue
            try:
                if not _make_view(atlas, view, maker, stop, log):
                    return False
            finally:
                lease.release(forget=atlas.find(view) is not None)
        # What others were making may be there by now; if they died, it is made here.
        wanted = [view for view in left if atlas.find(view) is None]
        if wanted:
            if stop():
                return False
            time.sleep(WAIT_SECONDS)
    made = provenance(settings.command, maker.device)
    content = atlas.content | {"shape": atlas.shape, "provenance": anonymise(made) if settings.without_host else made}
    write_text(atlas.folder / "atlas.json", json.dumps(content, indent=1) + "\n")
    return True


def _make_view(atlas: Atlas, view: int, maker: _Maker, stop: StopFn, log: LogFn) -> bool:
    """Make the file of a view whose lease this process holds, unless it is there; False if `stop` asked to leave."""
    remove_leftovers(atlas.view_folder(view))
    for line in atlas.put_aside_damaged(view):
        log(f"warning: {line}")
    if atlas.find(view) is not None:
        return True
    logits = maker.compute(view, atlas.views, stop)
    if logits is None:
        return False
    atlas.write(view, logits)
    return True


class _Maker:
    """Runs the teacher of a run on the views of its training images."""

    def __init__(self, run: Run, data: TrainingData, settings: TrainSettings, on_progress: ProgressCallback) -> None:
        self.device = resolve_device(settings.device)
        make_deterministic(self.device, settings.threads)
        assert isinstance(data.train, ImageSet)
        recipe = recipe_for(run.protocol, data.dataset, run.augmentation)
        self.source = TrainingSource(data.train, recipe, BATCH_SIZE, self.device, ("atlas",))
        self.run, self.on_progress, self.classes = run, on_progress, data.dataset.num_classes
        self.network = placed(teacher_network(run, self.classes, settings), self.device).eval().requires_grad_(False)
        assert run.teacher_precision is not None
        self.precision: Precision = run.teacher_precision
        self.images, self.began, self.reported = 0, time.perf_counter(), 0.0

    def compute(self, view: int, views: int, stop: StopFn) -> np.ndarray | None:
        """Compute the logits of a view, float16 [images, classes]; None if `stop` asked to leave."""
        count = len(self.source.labels)
        logits = torch.empty(count, self.classes, dtype=torch.float16, device=self.device)
        for index in torch.arange(count, device=self.device).split(BATCH_SIZE):
            if stop():
                return None
            images = make_view(self.source, view, index)
            with torch.no_grad(), autocast(self.device, self.precision):
                logits[index] = self.network(images).logits.half()
            self.images += len(index)
            self._report(view, views)
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                f"a logit of teacher {self.run.teacher_network} does not fit half precision (65,504 at most), "
                "so it can have no atlas; leave out --teacher-outputs atlas"
            )
        return logits.cpu().numpy()

    def _report(self, view: int, views: int) -> None:
        now = time.perf_counter()
        if now - self.reported < REPORT_SECONDS:
            return
        self.reported = now
        speed = self.images / (now - self.began)
        steps = -(-len(self.source.labels) // self.run.batch_size)
        # A whole atlas counts for less than the first step: a job is judged by how far it has come.
        position = {"epoch": 1, "epochs": self.run.schedule.epochs, "step": view, "steps": views * steps}
        left = (views - view) * len(self.source.labels) / speed
        self.on_progress(Progress(**position, images_per_second=speed, loss=None, top1=None, seconds_left=left))
