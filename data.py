"""The HDF5 feature loader: one file, a store of many, and the two masked views of their videos.

Axes: N videos, L frames, D feature width. A mask is boolean and True means hidden.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from formats.dataset import DatasetConfig, Split
from formats.files import BadInput, locked_folder, progress, write_whole
from formats.hdf5 import find_array, reading
from formats.recipe import other_recipe, read_recipe

READ_BYTES = 64 << 20  # features are scanned and loaded in blocks of about this size
OTHER_NAMES = (
    ": if it has another name, set 'feature_key' in the dataset JSON; one dataset per video? "
    "stack them into one 'feats' of shape (N, L, D)"
)
DIGEST_VIDEOS = 24  # of each file, in what tells features that were replaced

# ---------------------------------------------------------------- features


class OtherShape(BadInput):
    """Features of another length or width than they must have."""


class FeatureFile:
    """One HDF5 file of frame features: dataset ``feats``, (N, L, D), float16, float32 or float64.

    Videos of a contiguous, uncompressed dataset are read in place, at their offset in the file (unlike with a
    memory map, a damaged disk is then an error and no crash, and what was read does not count as memory of
    this process). Any other dataset is read through h5py, with a cache that holds a chunk's worth of videos:
    reading in file order decompresses each chunk once.

    Args:
        path: of the file.
        n_frames: L that it must have; None: any.
        width: D that it must have.
        key: of the dataset, where it is not ``feats``.

    Raises:
        BadInput: the file is missing, damaged, or unlike ``n_frames`` and ``width``.
    """

    def __init__(self, path: Path, n_frames: int | None, width: int, key: str = "feats"):
        self.path, self.key = path, key
        if not path.exists():
            where = f" in {Path.cwd()}; paths in a dataset JSON start from the working folder or its 'root'"
            raise BadInput(f"{path}: no such feature file{'' if path.is_absolute() else where}")
        with reading(path):
            self.open(n_frames, width)

    def open(self, n_frames: int | None, width: int) -> None:
        """Look at the file; what stays open of it is one descriptor."""
        where = f"{self.path}: '{self.key}'"
        file = h5py.File(self.path, "r")
        dataset, self.recipe = find_array(file, self.key, self.path, OTHER_NAMES), read_recipe(file)
        self.shape, self.dtype, self.stored = dataset.shape, dataset.dtype.newbyteorder("="), dataset.dtype
        rest = (self.shape or ())[1:]  # L and D
        if len(rest) != 2 or rest != (n_frames or rest[0], width) or not rest[0]:
            hint = f"; looks like (N, L * D), reshape it to (-1, {n_frames}, {width})"
            hint = hint if n_frames and rest == (n_frames * width,) else ""
            expected = f"expected (N, {n_frames or 'L'}, {width}): videos, frames, feature width"
            raise OtherShape(f"{where} has shape {self.shape}, {expected}{hint}")
        if self.shape[0] == 0:
            raise BadInput(f"{where} holds no video")
        if self.dtype not in (np.float16, np.float32, np.float64):
            raise BadInput(f"{where} is {self.dtype}, expected float16, float32 or float64")
        if dataset.is_virtual or dataset.external or not dataset.id.get_storage_size():
            raise BadInput(f"{where} holds no data of its own (virtual, external or never written)")
        self.n_videos = self.shape[0]
        self.video_bytes = self.shape[1] * width * self.dtype.itemsize
        self.nbytes = self.n_videos * self.video_bytes
        # h5py calls a bfloat16 float32: in place is only what is stored as numpy would.
        as_numpy = dataset.id.get_type().equal(h5py.h5t.py_create(self.stored))
        self.offset = dataset.id.get_offset() if as_numpy else None  # None too where chunked or compressed
        self.dataset: h5py.Dataset | None = dataset  # None where videos are read in place
        if self.offset is not None:
            stored = dataset.file.filename  # another file, where the dataset is a link into it
            if os.path.getsize(stored) < self.offset + self.nbytes:
                raise BadInput(f"{self.path}: truncated, '{self.key}' reaches beyond the end of the file")
            self.file, self.dataset = open(stored, "rb", buffering=0), None
            dataset.file.close()
            file.close()
        elif dataset.chunks:
            cache = (dataset.chunks[0] + 1) * self.video_bytes
            dataset.file.close()  # the cache of a file that is open cannot be changed
            file.close()
            file = h5py.File(self.path, "r", rdcc_nbytes=cache, rdcc_nslots=100_003, rdcc_w0=1)
            self.dataset = file[self.key]

    @property
    def in_place(self) -> bool:
        """Whether any video can be read without touching the others."""
        return self.offset is not None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The videos ``rows`` (n,), strictly ascending, as an array (n, L, D)."""
        with reading(self.path, f"videos {rows[0]} to {rows[-1]}"):
            if self.in_place:
                return self.read_in_place(rows)
            if rows[-1] - rows[0] == len(rows) - 1:
                return self.dataset[rows[0] : rows[-1] + 1]
            return self.dataset[rows]

    def read_in_place(self, rows: np.ndarray) -> np.ndarray:
        """Read each run of neighbouring videos at once; the disk hears of all of them first."""
        videos = np.empty((len(rows), *self.shape[1:]), self.stored)
        raw = videos.view(np.uint8).reshape(-1)
        size = self.video_bytes
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        runs = [  # (first byte in the array, last, first byte in the file)
            (start * size, stop * size, self.offset + int(rows[start]) * size)
            for start, stop in zip([0, *ends], ends, strict=False)
        ]
        if len(runs) > 1 and hasattr(os, "posix_fadvise"):
            for start, stop, where in runs:
                os.posix_fadvise(self.file.fileno(), where, stop - start, os.POSIX_FADV_WILLNEED)
        for start, stop, where in runs:
            while start < stop:  # a single call reads at most 2 GB
                n_read = os.preadv(self.file.fileno(), [raw[start:stop]], where)
                if n_read == 0:
                    raise OSError("the file has become shorter")
                start, where = start + n_read, where + n_read
        return videos

    def unpacked(self, folder: Path) -> "FeatureFile":
        """This file's copy that can be read in place, made unless it is there already.

        Args:
            folder: where the copy goes, named by the file's path, size and time of change.

        Raises:
            BadInput: the copy does not fit on the disk, or cannot be written.
        """
        source, status = self.path.resolve(), self.path.stat()
        named = str(source) if self.key == "feats" else f"{source}/{self.key}"
        own = f"{source.stem}-{zlib.crc32(named.encode()):08x}"
        copy = folder / f"{own}-{status.st_size:x}-{status.st_mtime_ns:x}.h5"
        with contextlib.nullcontext() if copy.exists() else locked_folder(folder):
            if not copy.exists():  # nor has another process made it while its lock was waited for
                self.make_copy(copy, f"{own}-*.h5")
        file = FeatureFile(copy, *self.shape[1:])
        file.path = self.path  # errors name the user's file
        return file

    def make_copy(self, copy: Path, outdated: str) -> None:
        """Write the unpacked copy in place of older ones, which match the pattern ``outdated``."""
        for older in copy.parent.glob(outdated):
            older.unlink(missing_ok=True)
        needed, free = self.nbytes, shutil.disk_usage(copy.parent).free
        if needed > 0.98 * free:
            raise BadInput(
                f"{self.path}: its unpacked copy needs {needed / 1e9:.1f} GB in {copy.parent}, where "
                f"{free / 1e9:.1f} GB are free; make room, or set 'memory' to ram"
            )
        write_whole(copy, self.unpack)

    def unpack(self, path: Path) -> None:
        """Write the features, contiguous and uncompressed, to a file."""
        with h5py.File(path, "w") as file:
            copy = file.create_dataset("feats", self.shape, self.dtype)
            size = max(1, READ_BYTES // self.video_bytes)
            for start in progress(range(0, self.n_videos, size), f"unpacking {self.path.name}"):
                rows = np.arange(start, min(start + size, self.n_videos))
                copy[rows[0] : rows[-1] + 1] = self.read(rows)

    @property
    def layout(self) -> str:
        """How the file stores the array, in words."""
        if self.in_place:
            return "contiguous, read in place"
        compression = self.dataset.compression or "uncompressed"
        return f"chunks of {self.dataset.chunks}, {compression}" if self.dataset.chunks else compression


class FeatureStore:
    """The features of a split: one or many files read as one array (N, L, D), from memory or from disk.

    Args:
        files: HDF5 files, in order.
        n_frames: L that every file must have; None: that of the first.
        width: D that every file must have.
        memory: ``ram`` loads the set, ``disk`` reads what is asked for, ``auto`` loads it when it fits
            comfortably (half of the memory that is free, divided among the ranks on the machine).
        device: where ``ram`` keeps the set when it fits there too.
        scratch: folder for unpacked copies of chunked files that stay on disk: for training, which reads in
            random order and would decompress a chunk again for every video. None: no copies.
        key: of the dataset in every file.

    Raises:
        BadInput: a file cannot be used, two disagree, a feature is not finite, or memory does not suffice.
    """

    def __init__(
        self,
        files: Iterable[Path],
        n_frames: int | None,
        width: int,
        memory: str = "auto",
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
        key: str = "feats",
    ):
        self.files = []
        for path in files:
            self.files.append(FeatureFile(path, n_frames, width, key))
            n_frames = self.files[0].shape[1]
        self.paths = [file.path for file in self.files]
        self.recipe = next((file.recipe for file in self.files if file.recipe), None)  # None: not known
        for file in self.files:
            if difference := other_recipe(file.recipe, self.recipe):
                raise BadInput(f"{file.path}: features of another recipe than the other files': {difference}")
            if file.dtype != self.files[0].dtype:
                raise BadInput(
                    f"{file.path}: {file.dtype}, but {self.files[0].path} is {self.files[0].dtype}"
                )
        self.n_videos = [file.n_videos for file in self.files]  # of each file
        self.starts = np.cumsum([0, *self.n_videos])  # first video of each file, then N
        self.shape = (int(self.starts[-1]), n_frames, width)
        self.checked = np.zeros(len(self), dtype=bool)  # videos whose features were seen to be finite
        self.padded = np.zeros(len(self), dtype=bool)  # those among them whose last frame is all zero
        self.dtype = np.dtype(np.float16 if self.files[0].dtype == np.float16 else np.float32)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.loaded: Tensor | None = None
        self.unpacked: list[Path] = []  # files read from an unpacked copy
        self.n_sets = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # every rank on this machine loads its own
        if memory == "ram" or (memory == "auto" and self.n_sets * self.nbytes < free_memory() / 2):
            self.load(device)
        elif scratch is not None:
            self.unpacked = [file.path for file in self.files if not file.in_place]
            self.files = [file if file.in_place else file.unpacked(scratch) for file in self.files]

    def load(self, device: torch.device | str) -> None:
        """Read the set into memory, and on to a GPU where it fits comfortably.

        Raises:
            BadInput: there is not enough memory, or the files cannot be read.
        """
        free, needed = free_memory(), self.n_sets * self.nbytes
        each = f" ({self.n_sets} ranks, each its own)" if self.n_sets > 1 else ""
        too_large = BadInput(
            f"{self.paths[0]}: with 'memory' ram the {len(self)} videos need {needed / 1e9:.1f} GB{each}, "
            f"{free / 1e9:.1f} GB are free; set 'memory' to disk"
        )
        if needed > free:
            raise too_large
        try:
            self.loaded = torch.empty(self.shape, dtype=torch.float16 if self.dtype == np.float16 else None)
        except RuntimeError:  # a limit on the process
            raise too_large from None
        for rows in self.blocks("loading"):
            self.loaded[rows[0] : rows[-1] + 1] = torch.from_numpy(self.read_files(rows))
        if torch.device(device).type == "cuda" and self.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.loaded = self.loaded.to(device)

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a run that reads these features depends on, wherever and however they are stored.

        The digest is one of some videos of every file, the first and the last among them: the whole set would
        take minutes, and features that were replaced differ everywhere.
        """
        digest = hashlib.sha256(str(self.n_videos).encode())
        for start, stop in itertools.pairwise(self.starts):
            rows = np.unique(np.linspace(start, stop - 1, DIGEST_VIDEOS).astype(np.int64))
            digest.update(self.read(rows).cpu().numpy().tobytes())
        return {"shape": list(self.shape), "dtype": str(self.dtype), "digest": digest.hexdigest()[:16]}

    def name_of(self, video: int) -> str:
        """A video as errors name it: its file, and its number therein."""
        number = int(np.searchsorted(self.starts, video, side="right")) - 1
        return f"{self.paths[number]}: video {video - self.starts[number]}"

    @property
    def padding(self) -> str:
        """What to tell the user of videos, among those read, that end in all-zero frames: mostly nothing."""
        if not self.padded.any():
            return ""
        files = ", ".join(map(str, self.paths))
        return f"{files}: {self.padded.sum()} videos end in all-zero frames, which the network sees as frames"

    def is_at_hand(self, device: torch.device) -> bool:
        """Whether reading for a device is no more than gathering from its own memory."""
        return self.loaded is not None and self.loaded.device.type == device.type

    @property
    def place(self) -> str:
        """Where the features are read from, in words for the log."""
        if self.loaded is not None:
            return f"{self.nbytes / 1e6:,.0f} MB of features in memory ({self.loaded.device.type})"
        copies = f"; unpacked once: {', '.join(map(str, self.unpacked))}" if self.unpacked else ""
        return f"{self.nbytes / 1e6:,.0f} MB of features read from disk{copies}"

    def read(self, rows: np.ndarray) -> Tensor:
        """The videos ``rows`` (n,), in any order and with repeats: (n, L, D), float16 or float32."""
        if self.loaded is not None and (np.diff(rows) == 1).all():
            return self.loaded[rows[0] : rows[-1] + 1]  # a view
        if self.loaded is not None:
            return self.loaded[torch.from_numpy(rows).to(self.loaded.device)]
        unique, inverse = np.unique(rows, return_inverse=True)
        features = torch.from_numpy(self.read_files(unique))
        return features if len(unique) == len(rows) and (unique == rows).all() else features[inverse]

    def read_files(self, rows: np.ndarray) -> np.ndarray:
        """The videos ``rows`` (n,), strictly ascending, from their files, seen to be finite."""
        parts = []
        for number, file in enumerate(self.files):
            start, stop = self.starts[number : number + 2]
            mine = rows[(rows >= start) & (rows < stop)]
            if len(mine) == 0:
                continue
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
                part = file.read(mine - start).astype(self.dtype, copy=False)
            if not self.checked[mine].all():
                finite = np.isfinite(part).all(-1)  # (n, L)
                if not finite.all():
                    video, frame = np.argwhere(~finite)[0]
                    raise BadInput(f"{file.path}: video {mine[video] - start}, frame {frame}: not finite")
                self.checked[mine] = True
                self.padded[mine] = ~part[:, -1].any(-1)
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, description: str) -> Iterator[np.ndarray]:
        """All rows in file order, in blocks of about 64 MiB, with a progress bar."""
        size = max(1, READ_BYTES * len(self) // self.nbytes)
        for start in progress(range(0, len(self), size), description):
            yield np.arange(start, min(start + size, len(self)))


def open_store(
    config: DatasetConfig, split: Split, memory: str, device: torch.device | str, scratch: Path | None = None
) -> FeatureStore:
    """The feature store of one split of a dataset."""
    return FeatureStore(
        split.features, config.max_frames, config.feature_size, memory, device, scratch, config.feature_key
    )


def free_memory() -> int:
    """Bytes of memory that can be had without swapping, under the limit of a container or batch job too."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux: all the memory there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for _, controllers, name in groups:
        if controllers not in ("", "memory"):  # control groups of version 2, of version 1
            continue
        names = ("memory.max", "memory.current") if controllers == "" else (
            "memory.limit_in_bytes", "memory.usage_in_bytes")  # fmt: skip
        root = Path("/sys/fs/cgroup", controllers)
        folder = root / name.lstrip("/")
        for group in {root, folder, *(each for each in folder.parents if root in each.parents)}:
            try:
                limit, used = ((group / each).read_text().strip() for each in names)
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except OSError:  # no limit here, or seen from inside a container
                continue
            if limit.isdigit():
                cache = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
                free = min(free, max(0, int(limit) - int(used) + cache))
    return free


# ---------------------------------------------------------------- views


class Views(NamedTuple):
    """What one pass over the training set draws."""

    order: np.ndarray  # (N,) videos in the order of the pass
    masks: Tensor  # (2, N, L) bool, True = hidden; by video, not by place in the order


def n_hidden_frames(n_frames: int, mask_ratio: float) -> int:
    """``M = int(p L)``, truncated (spec: section 2)."""
    return int(mask_ratio * n_frames)


def generator(seed: int, stage: str, *position: int) -> np.random.Generator:
    """The random numbers of a place in a run, e.g. (epoch, pass): whatever the way there."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), *position])


def draw_views(rng: np.random.Generator, n_videos: int, n_frames: int, mask_ratio: float) -> Views:
    """Draw the order of a pass and both views' masks for all videos (spec: section 2).

    One uniform permutation of the frames of each video; view 1 sees the first V of it, view 2 the last V.
    """
    n_visible = n_frames - n_hidden_frames(n_frames, mask_ratio)
    order = rng.permutation(n_videos)
    small = np.int16 if n_frames <= 2**15 else np.int32
    frames = np.broadcast_to(np.arange(n_frames, dtype=small), (n_videos, n_frames))
    frames = rng.permuted(frames, axis=1)  # (N, L)
    masks = np.ones((2, n_videos, n_frames), dtype=bool)
    np.put_along_axis(masks[0], frames[:, :n_visible].astype(np.int64), False, axis=1)
    np.put_along_axis(masks[1], frames[:, -n_visible:].astype(np.int64), False, axis=1)
    return Views(order, torch.from_numpy(masks))
