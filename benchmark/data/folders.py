"""Images in class folders: `<root>/{train,test}/<class>/*.png` and the like."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmark.core.devices import cpu_count
from benchmark.core.errors import UserError
from benchmark.data.cache import SPLITS, Content
from benchmark.data.dataset import ImageSet
from benchmark.io.untrusted import sized

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MODES = ("RGB", "L", "P", "1")
"""Pillow's names of what is taken: colour, and grey, palette and black-and-white, which are turned into colour."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no whole image."""
LARGEST_FILE = 2**28
"""Bytes of an image file."""
CHUNK = 500
"""Images decoded by one task of a worker process."""


@dataclass(frozen=True)
class ClassFolders:
    """The image files of a dataset: class names in alphabetical order, each split's files and their labels.

    state: changes when a file is added, removed, renamed or written.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[str]]
    labels: dict[str, list[int]]
    state: str


def list_class_folders(root: Path) -> ClassFolders:
    """List the images below `root`, without names that begin with a dot and files that are no images.

    Raises:
        UserError: a split is missing, the splits differ in their classes, or a class has no images.
    """
    classes: dict[str, list[str]] = {}
    for split in SPLITS:
        classes[split] = list_subfolders(root / split)
        if not classes[split]:
            raise UserError(f"no class folders in {root / split}; images belong in {root}/{{train,test}}/<class>/")
    check_same_classes(root, classes)
    files: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    lines = []
    for split in SPLITS:
        files[split], labels[split] = [], []
        for label, name in enumerate(classes[split]):
            found = images_of_class(root / split / name)
            files[split] += [str(root / split / name / file) for file, _, _ in found]
            labels[split] += [label] * len(found)
            lines.append([split, name, found])
    state = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    return ClassFolders(root, tuple(classes["train"]), files, labels, state)


def check_same_classes(root: Path, classes: Mapping[str, Sequence[str]]) -> None:
    """Check that two splits have the same classes.

    classes: the names of each split's class folders, by the name of the split.

    Raises:
        UserError: a class is only in one of them.
    """
    (first, first_classes), (second, second_classes) = classes.items()
    if list(first_classes) != list(second_classes):
        only_one = sorted(set(first_classes) ^ set(second_classes))
        split = first if only_one[0] in first_classes else second
        raise UserError(
            f"{first} and {second} classes of {root} differ: {only_one[0]!r} is only in {split} "
            f"({len(only_one)} such); both need the same class folders"
        )


def read_class_folders(folders: ClassFolders, image_size: int) -> Content:
    """Decode all images, in canonical order.

    Raises:
        UserError: an image is damaged, or not of this size, or of a kind that is not taken.
    """
    splits = []
    for split in SPLITS:
        images = decode_images(folders.files[split], image_size)
        splits.append(canonical(images, np.array(folders.labels[split], dtype=np.int64)))
    return Content(folders.classes, *splits)


def canonical(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    """Sort images, uint8 [images, height, width, 3], and labels by label and then by the sha256 of the pixels.

    The order depends on no file name, so every way to store a dataset gives the same one.
    """
    images = np.ascontiguousarray(images)
    hashes = [hashlib.sha256(image.data).digest() for image in images]
    order = sorted(range(len(labels)), key=lambda position: (labels[position], hashes[position]))
    return ImageSet(torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64)))


def decode_images(files: list[str], image_size: int) -> np.ndarray:
    """Decode image files in the given order, uint8 [images, size, size, 3].

    Many files are shared among one process per core; Pillow decodes small images under the interpreter's lock, so
    threads would not help.

    Raises:
        UserError: an image is damaged, or not of this size, or of a kind that is not taken.
    """
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    sizes = [image_size] * len(chunks)
    processes = min(cpu_count(), len(chunks))
    # Forked processes start at once; elsewhere each would import everything anew, and a daemon may have no children.
    if processes < 2 or not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return np.concatenate([_decode_chunk(chunk, image_size) for chunk in chunks])
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        return np.concatenate(list(pool.map(_decode_chunk, chunks, sizes)))


def _decode_chunk(files: list[str], image_size: int) -> np.ndarray:
    pixels = b"".join([_decode(path, image_size) for path in files])
    return np.frombuffer(pixels, dtype=np.uint8).reshape(len(files), image_size, image_size, 3)


def _decode(path: str, image_size: int) -> bytes:
    try:
        data = read_image_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}") from error
    try:
        if data.startswith(PNG_SIGNATURE):
            _check_png(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Before any pixel is decoded, so that an image of absurd size is refused at no cost.
            _check_kind(path, image, image_size)
            image.load()
            return (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
    except DAMAGE as error:
        raise UserError(f"image {path} is damaged or no image; replace it or remove it") from error


def read_image_bytes(path: str) -> bytes:
    """Read the content of an image file.

    Raises:
        UserError: it is larger than any image may be.
        OSError: it cannot be read.
    """
    with open(path, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > LARGEST_FILE:
            raise UserError(f"image {path} has {sized(size)}; at most {sized(LARGEST_FILE)} are read, so replace it")
        return opened.read()


def _check_kind(path: str, image: Image.Image, image_size: int) -> None:
    if image.size != (image_size, image_size):
        width, height = image.size
        raise UserError(f"image {path} is {width}x{height} pixels; it must be {image_size}x{image_size}")
    if image.mode not in MODES:
        raise UserError(f"image {path} has mode {image.mode}; save it as 8-bit colour, grey or palette")


def _check_png(data: bytes) -> None:
    """Compare the checksum of every chunk, which Pillow does not do for pixel data.

    Raises:
        ValueError, struct.error: the file is damaged or cut short.
    """
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if zlib.crc32(data[position + 4 : position + 8 + length]) != checksum:
            raise ValueError("checksum of a PNG chunk")
        position += 12 + length


def list_subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, in order; those that begin with a dot are left out.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError as error:
        raise UserError(f"no folder {folder}; images belong in {folder.parent}/{{train,test}}/<class>/") from error
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[tuple[str, int, int]]:
    """List name, size in bytes and time of writing in ns of each image file, in the order of the names.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and entry.is_file():
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    return sorted(found)


def images_of_class(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[tuple[str, int, int]]:
    """List the image files of a class's folder, as `image_files` does.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    found = image_files(folder, suffixes)
    if not found:
        allowed = ", ".join(suffix[1:] for suffix in suffixes)
        raise UserError(f"class folder {folder} has no images; it needs at least one ({allowed})")
    return found
