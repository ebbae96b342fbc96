"""Decoding image files of any size into square crops, in worker processes and ahead of their use.

A crop is, pixel for pixel, what torchvision makes of a Pillow image: `RandomResizedCrop` in training, `Resize` and
`CenterCrop` in evaluation, bilinear with Pillow's antialiasing. It depends on the task alone (the file, a seed, a
flip), so any number of workers gives the same bits.

The workers are those of PyTorch's DataLoader. It stops when one of them dies, with `persistent_workers` too; here the
crops that are missing are decoded again by new workers, because one process that the system killed for want of memory
must not end a training of several days.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmark.core.devices import cpu_count
from benchmark.core.errors import UserError
from benchmark.data.folders import DAMAGE, FORMATS, read_image_bytes

SCALE = (0.08, 1.0)
"""Range of a training crop's share of the image's area."""
RATIO = (3 / 4, 4 / 3)
"""Range of a training crop's width over its height, before it is made square."""
TRIES = 10
"""Boxes that are drawn until one lies inside the image; after that it is one in the middle."""
MARGIN = 256 / 224
"""The shorter side of a scaled image over the side of the crop from its middle, in evaluation."""
MODES = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA")
"""Pillow's names of the 8-bit kinds that are turned into colour; ImageNet has some grey and CMYK ones."""

MOST_PIXELS = 100_000_000
"""Of an image; the largest of ImageNet has 61 million. Some kilobytes of a file can unpack to any number."""
MOST_RATIO = 100
"""Of the longer side to the shorter one: to evaluate an image, it is enlarged until the shorter one is long enough."""

WORKERS = "KD_DATA_WORKERS"
"""The environment variable that sets the number of workers."""
MOST_WORKERS = 32
RESTARTS = 3
"""How many times dead worker processes are replaced."""
DEATHS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)
"""What torch raises for a dead worker, and when it fetches crops that a dead worker had announced."""


@dataclass(frozen=True)
class DecodeTask:
    """Image files (or images that are decoded already, uint8 [height, width, 3]), and what is to be cut from each.

    seeds: of the box of each training crop, int64 [files, crops]; None for the one crop of evaluation;
    flips: whether each crop is mirrored, bool [files, crops]; size: of a crop, in pixels.
    """

    files: tuple[str | np.ndarray, ...]
    seeds: np.ndarray | None
    flips: np.ndarray
    size: int


Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge, in pixels."""


def random_box(width: int, height: int, seed: int) -> Box:
    """Draw the box of a training crop: uniform share of the area, log-uniform ratio, anywhere inside the image.

    It is the box that torchvision's `RandomResizedCrop` draws after `torch.manual_seed(seed)`.
    """
    stream = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=stream)

    lowest, highest = torch.tensor(RATIO).log().tolist()
    for _ in range(TRIES):
        area = width * height * uniform(*SCALE).item()
        ratio = uniform(lowest, highest).exp().item()
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top = int(torch.randint(height - high + 1, (1,), generator=stream))
            left = int(torch.randint(width - wide + 1, (1,), generator=stream))
            return left, top, left + wide, top + high
    # An image too long or too wide for the ratios: as much of its middle as they allow.
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def training_crop(image: Image.Image, seed: int, size: int) -> Image.Image:
    """Cut the random crop out of an image, [size, size]."""
    box = random_box(image.width, image.height, seed)
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def evaluation_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side of an image to `MARGIN` times the crop's, and cut out the middle, [size, size]."""
    short = round(size * MARGIN)
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = round((width - size) / 2), round((height - size) / 2)
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    return whole.crop((left, top, left + size, top + size))


def read_image(path: str) -> Image.Image:
    """Read an image file in colour.

    Raises:
        UserError: it cannot be read, is damaged, or is of a kind that is not taken.
    """
    # A name that is no text could not be printed.
    shown = os.fsencode(path).decode(errors="replace")
    try:
        data = read_image_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read image {shown}: {error.strerror}") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise UserError(f"image {shown} has mode {image.mode}; save it as 8-bit colour, grey or palette")
            width, height = image.size
            # Before any pixel is decoded.
            if width * height > MOST_PIXELS or max(width, height) > MOST_RATIO * min(width, height):
                raise UserError(f"image {shown} is {width}x{height} pixels; {_ALLOWED}")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise UserError(f"image {shown} is far too large; {_ALLOWED}") from error
    except DAMAGE as error:
        raise UserError(f"image {shown} is damaged or no image; replace it or remove it") from error


_ALLOWED = (
    f"allowed: {MOST_PIXELS // 1_000_000} million pixels, and {MOST_RATIO} times as long as wide; "
    "scale it down or remove it"
)


def decode(task: DecodeTask) -> Tensor:
    """Decode the crops of a task, uint8 [files, crops, size, size, 3].

    Raises:
        UserError: see `read_image`.
    """
    files, crops = task.flips.shape
    pixels = np.empty((files, crops, task.size, task.size, 3), dtype=np.uint8)
    for number, source in enumerate(task.files):
        image = read_image(source) if isinstance(source, str) else Image.fromarray(source)
        for crop in range(crops):
            if task.seeds is None:
                cut = evaluation_crop(image, task.size)
            else:
                cut = training_crop(image, int(task.seeds[number, crop]), task.size)
            upright = np.asarray(cut)
            pixels[number, crop] = upright[:, ::-1] if task.flips[number, crop] else upright
    return torch.from_numpy(pixels)


def decode_workers() -> int:
    """Choose how many processes or threads decode beside this one; 0 means that this one decodes.

    `KD_DATA_WORKERS` sets the number; the default is all processors but one, and at most 32, shared by the processes
    that share a batch. A process that may have no children trains one of several jobs: it leaves the processors to the
    others, unless it trains on a GPU.

    Raises:
        UserError: the environment variable is not a number.
    """
    asked = os.environ.get(WORKERS)
    if asked is not None:
        if not asked.isdecimal():
            raise UserError(f"{WORKERS}={asked} is refused; set it to the number of decoding processes, 0 or more")
        return int(asked)
    own = cpu_count()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        own = max(1, own // torch.distributed.get_world_size())
    spare = min(own - 1, MOST_WORKERS)
    return spare if _may_have_children() or torch.cuda.is_initialized() else min(spare, 1)


def decode_in_workers(tasks: Iterable[DecodeTask], ahead: int, pinned: bool = False) -> Iterator[Tensor]:
    """Decode the tasks in order, about `ahead` of them before they are used.

    pinned: put crops into memory from which a GPU copies while it computes. Each task is requested as late as possible.

    Raises:
        UserError: an image cannot be decoded, or worker processes die again and again.
    """
    workers = decode_workers()
    results: Generator[Tensor | str]
    if workers == 0:
        results = (_decode_or_explain(task) for task in tasks)
    elif _may_have_children():
        results = _by_processes(tasks, workers, ahead, pinned)
    else:
        results = _by_threads(tasks, workers, ahead)
    # Closed at once: left to the garbage collector by an error, workers would be waited for in vain.
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, str):
                raise UserError(result)
            yield result


def decode_here(tasks: Iterable[DecodeTask]) -> list[Tensor]:
    """Decode a few tasks by threads of this process.

    Raises:
        UserError: an image cannot be decoded.
    """
    with ThreadPoolExecutor(max(1, decode_workers())) as threads:
        return list(threads.map(decode, tasks))


def _may_have_children() -> bool:
    return not multiprocessing.current_process().daemon


def _decode_or_explain(task: DecodeTask) -> Tensor | str:
    """Decode a task, or return the error as a line: an exception would lose its type between processes."""
    try:
        return decode(task)
    except UserError as error:
        return str(error)


def _by_threads(tasks: Iterable[DecodeTask], workers: int, ahead: int) -> Generator[Tensor | str]:
    tasks = iter(tasks)
    threads = ThreadPoolExecutor(workers)
    waiting: deque[Future[Tensor | str]] = deque()
    try:
        while True:
            wanted = max(ahead, workers) - len(waiting)
            waiting.extend(threads.submit(_decode_or_explain, task) for task in itertools.islice(tasks, wanted))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


class _Attempts(TorchDataset):
    """Tasks in place of positions: a worker process is handed one and sends back its crops."""

    def __getitem__(self, task: DecodeTask) -> Tensor | str:
        return _decode_or_explain(task)


def _by_processes(tasks: Iterable[DecodeTask], workers: int, ahead: int, pinned: bool) -> Generator[Tensor | str]:
    tasks = iter(tasks)
    unanswered: deque[DecodeTask] = deque()

    def handed_out(again: list[DecodeTask]) -> Iterator[DecodeTask]:
        yield from again
        for task in tasks:
            unanswered.append(task)
            yield task

    for restart in range(RESTARTS + 1):
        loader = DataLoader(
            _Attempts(),
            batch_size=None,
            sampler=handed_out(list(unanswered)),
            num_workers=workers,
            prefetch_factor=max(2, -(-ahead // workers)),
            pin_memory=pinned,
            worker_init_fn=_prepare_worker,
            # Forked processes start at once; elsewhere each imports everything anew.
            multiprocessing_context="fork" if sys.platform.startswith("linux") else None,
            generator=torch.Generator(),
        )
        try:
            for result in _start_quietly(loader):
                unanswered.popleft()
                yield result
            return
        except DEATHS as error:
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            if restart < RESTARTS:
                warnings.warn("a process that decodes images died; other processes do its work", stacklevel=2)
    raise UserError(
        f"processes that decode images died {RESTARTS + 1} times, perhaps for want of (shared) memory; set {WORKERS} "
        "to a smaller number (0: none), and run the command again"
    )


def _start_quietly(loader: DataLoader) -> Iterator[Any]:
    """Start the loader without the signal handler that torch sets for the death of a worker.

    The handler would raise an error anywhere in the main thread, for instance while it writes a checkpoint. Without it,
    a dead worker is noticed when its crops are needed.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        with contextlib.suppress(TypeError):
            # None stands for a handler that no Python code has set, and nothing else is refused.
            signal.signal(signal.SIGCHLD, before)


def _prepare_worker(number: int) -> None:
    # Ctrl-C in a terminal reaches these processes too, but the main one wants a last batch or two after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A few files of ImageNet have damaged notes (EXIF) beside sound pixels.
    warnings.filterwarnings("ignore", module="PIL")
