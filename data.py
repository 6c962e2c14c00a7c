"""What a run reads: dataset JSON, HDF5 frame features, MAT labels, the two masked views; and the demo set.

``python data.py Json/x.json`` reports what a dataset holds, and exits with status 2 if it is broken.

Axes: N videos, L frames, D feature width. A mask is boolean and True means hidden.
"""

import contextlib
import difflib
import functools
import json
import os
import platform
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
import torch
from torch import Tensor, nn
from tqdm import tqdm

READ_BYTES = 64 << 20  # features are scanned and loaded in blocks of about this size


class BadInput(ValueError):
    """A file or setting the user gave cannot be used; the message is one line that says what to mend."""


# ---------------------------------------------------------------- files, in general


def expand(path: str) -> Path:
    """A path the user wrote, with ``~`` and environment variables expanded."""
    return Path(os.path.expanduser(os.path.expandvars(path)))


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place: whole or not at all.

    Raises:
        BadInput: the file cannot be written; the previous one, if any, is intact.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_temporaries(path.parent, path.name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power cut
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch and HDF5 report a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or f"disk full? ({str(error).splitlines()[0]})"
        raise BadInput(f"{path}: cannot be written: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clean_temporaries(folder: str | Path, name: str = "*") -> None:
    """Remove what ``write_whole`` left in a folder when its process, on this machine, was killed."""
    for path in Path(folder).glob(f"{name}.{platform.node()}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not process_exists(int(process)):
            path.unlink(missing_ok=True)


def process_exists(number: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read_checkpoint(path: str | Path) -> dict:
    """Read a ``.pth`` file as plain data: tensors, numbers, strings and containers, never code.

    Raises:
        BadInput: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path}: not a checkpoint of plain tensors: {reason}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a checkpoint is a dict, found {type(content).__name__}")
    return content


def build_network(
    build: Callable[[Mapping[str, Tensor]], nn.Module],
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    where: str,
) -> nn.Module:
    """Build a network from the weights of a state dict that may come from anywhere, strictly.

    Args:
        build: makes the network from weights under our names, its sizes read off them.
        state: weights under the names of their source.
        names: from these names to ours, all of them.
        where: what to call the source in an error.

    Returns:
        The network with copies of the weights, float32.

    Raises:
        BadInput: a weight is missing, unknown, no finite dense tensor, or of a shape the others do not allow.
    """
    if not isinstance(state, Mapping):
        raise BadInput(f"{where}: expected weights by name, found {type(state).__name__}")
    problems = sorted(f"{key} is unknown" for key in state.keys() - names.keys())
    problems += sorted(f"{key} is missing" for key in names.keys() - state.keys())
    if problems:
        raise BadInput(f"{where}: not the weights of this network: {'; '.join(problems[:3])}")
    weights = {ours: checked_weight(state[key], f"{where}: {key}") for key, ours in names.items()}
    try:
        with torch.device("meta"):  # no memory goes into sizes that are not yet checked
            net = build(weights)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{where}: not the weights of this network ({error})") from None
    shapes = {ours: tuple(value.shape) for ours, value in net.state_dict().items()}
    for key, ours in names.items():
        if shapes[ours] != tuple(weights[ours].shape):
            raise BadInput(
                f"{where}: {key}: expected shape {shapes[ours]}, found {tuple(weights[ours].shape)}"
            )
    net.load_state_dict(weights, assign=True)
    return net


def checked_weight(tensor: Tensor, where: str) -> Tensor:
    """A copy in float32 of a tensor that may come from anywhere."""
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{where}: expected a tensor, found {type(tensor).__name__}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise BadInput(f"{where}: expected dense floating-point values, found {found}")
    # A view can repeat a few stored bytes a billion times; no honest weight does.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadInput(f"{where}: expected {tensor.numel()} stored values, found a view of fewer")
    weight = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not weight.isfinite().all():
        raise BadInput(f"{where}: expected finite values, found NaN or infinity")
    return weight


def read_json(path: str | Path) -> dict:
    """Read a JSON object.

    Raises:
        BadInput: the file is missing, has a syntax error, a doubled key, or is no object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise BadInput(f"{path}: key '{key}' stands there twice")
        return dict(pairs)

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as error:  # not text, a number of 5,000 digits, a maze
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def unknown_keys(found: Iterable[str], known: Iterable[str], where: str = "") -> list[str]:
    """Describe each key of ``found`` that is not in ``known``, with the nearest known one."""
    known = list(known)
    problems = []
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            problems.append(
                f"unknown key '{where}{key}'" + (f" (did you mean '{where}{near[0]}'?)" if near else "")
            )
    return problems


# ---------------------------------------------------------------- dataset JSON


@dataclass(frozen=True)
class Split:
    """One of the three parts of a dataset."""

    name: str  # train, test (the database) or query
    features: tuple[Path, ...]
    labels: tuple[Path, ...]  # empty: unlabelled
    label_variable: str


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset JSON: the facts of a dataset, and the settings to use on it."""

    path: Path
    dataset: str
    train: Split
    test: Split
    query: Split
    num_class: int
    feature_size: int  # "hidden_size" in the JSON: the published name of D
    max_frames: int
    run: Mapping = field(default_factory=dict)  # settings of WSCH, checked by engine.settings
    bth: Mapping = field(default_factory=dict)  # settings of BTH, likewise

    @property
    def query_is_database(self) -> bool:
        """Every database video is a query and stays in the database: it retrieves itself."""
        return self.query.features == self.test.features


REQUIRED_KEYS = ("dataset", "train", "test", "query", "train_label", "test_label", "query_label",
                 "num_class", "hidden_size", "max_frames")  # fmt: skip
OPTIONAL_KEYS = ("root", "run", "bth")
LABEL_VARIABLES = {("activitynet", "test"): "re_label", ("activitynet", "query"): "q_label"}  # else "labels"


def load_config(path: str | Path) -> DatasetConfig:
    """Read a dataset JSON (spec: section 1), published or with our blocks ``run`` and ``bth``.

    Raises:
        BadInput: all that is wrong with it, in one line.
    """
    content = read_json(path)
    problems = unknown_keys(content, REQUIRED_KEYS + OPTIONAL_KEYS)
    problems += [f"key '{key}' is missing" for key in REQUIRED_KEYS if key not in content]

    def check(key: str, valid: bool, expected: str) -> None:
        if key in content and not valid:
            problems.append(f"'{key}' must be {expected}, found {json.dumps(content[key])}")

    for key in ("dataset", "root"):
        check(key, isinstance(content.get(key), str) and content[key] != "", "a non-empty string")
    for key in ("num_class", "hidden_size", "max_frames"):
        value = content.get(key)
        meaning = " (the feature width D)" if key == "hidden_size" else ""
        check(key, type(value) is int and 0 < value < 2**20, f"a positive integer{meaning}")
    for key in ("run", "bth"):
        check(key, isinstance(content.get(key), dict), "an object")
    root = expand(str(content.get("root", "")))

    def files(key: str, may_be_empty: bool = False) -> tuple[Path, ...]:
        value = content.get(key, "")
        names = [] if value in ("", None) else value if isinstance(value, list) else [value]
        valid = all(isinstance(name, str) and name.isprintable() and name for name in names)
        check(key, valid and (may_be_empty or len(names) > 0), "a file name or a list of file names")
        return tuple(root / expand(name) for name in names) if valid else ()

    splits = {
        name: Split(
            name,
            files(name),
            files(f"{name}_label", may_be_empty=name == "train"),
            LABEL_VARIABLES.get((str(content.get("dataset")), name), "labels"),
        )
        for name in ("train", "test", "query")
    }
    if problems:
        raise BadInput(f"{path}: {'; '.join(problems)}")
    config = DatasetConfig(
        path=Path(path),
        dataset=content["dataset"],
        **splits,
        num_class=content["num_class"],
        feature_size=content["hidden_size"],
        max_frames=content["max_frames"],
        run=content.get("run", {}),
        bth=content.get("bth", {}),
    )
    return config


# ---------------------------------------------------------------- features


class FeatureFile:
    """One HDF5 file of frame features: dataset ``feats``, (N, L, D), float16, float32 or float64.

    Videos of a contiguous, uncompressed dataset are read in place, at their offset in the file (unlike with a
    memory map, a damaged disk is then an error and no crash, and what was read does not count as memory of
    this process). Any other dataset is read through h5py, with a cache that holds a chunk's worth of videos:
    reading in file order decompresses each chunk once.

    Raises:
        BadInput: the file is missing, damaged, or unlike ``n_frames`` and ``width``.
    """

    def __init__(self, path: Path, n_frames: int, width: int):
        self.path = path
        if not path.exists():
            raise BadInput(f"{path}: no such feature file")
        try:
            self.dataset = h5py.File(path, "r").get("feats")
        except (OSError, RuntimeError, KeyError) as error:
            raise BadInput(f"{path}: not a readable HDF5 file (damaged or truncated?): {error}") from None
        if not isinstance(self.dataset, h5py.Dataset):
            with h5py.File(path, "r") as file:
                raise BadInput(f"{path}: no dataset 'feats', found {sorted(file)}")
        shape, self.dtype = self.dataset.shape, self.dataset.dtype.newbyteorder("=")
        if shape is None or len(shape) != 3 or shape[1:] != (n_frames, width):
            raise BadInput(
                f"{path}: 'feats' has shape {shape}, the dataset JSON says (N, {n_frames}, {width})"
            )
        if shape[0] == 0:
            raise BadInput(f"{path}: 'feats' holds no video")
        if self.dtype not in (np.float16, np.float32, np.float64):
            raise BadInput(f"{path}: 'feats' is {self.dtype}, expected float16, float32 or float64")
        if self.dataset.is_virtual or self.dataset.external or not self.dataset.id.get_storage_size():
            raise BadInput(f"{path}: 'feats' holds no data of its own (virtual, external or never written)")
        self.n_videos = shape[0]
        self.video_bytes = n_frames * width * self.dtype.itemsize
        self.offset = self.dataset.id.get_offset()  # None where the data are chunked, compressed or elsewhere
        if self.offset is not None:
            stored = self.dataset.file.filename  # another file, where 'feats' is a link into it
            if os.path.getsize(stored) < self.offset + self.dataset.nbytes:
                raise BadInput(f"{path}: truncated, 'feats' reaches beyond the end of the file")
            self.file = open(stored, "rb", buffering=0)
        elif self.dataset.chunks:
            cache = (self.dataset.chunks[0] + 1) * self.video_bytes
            self.dataset.file.close()  # the cache of a file that is open cannot be changed
            self.dataset = h5py.File(path, "r", rdcc_nbytes=cache, rdcc_nslots=100_003, rdcc_w0=1)["feats"]

    @property
    def in_place(self) -> bool:
        """Whether any video can be read without touching the others."""
        return self.offset is not None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The videos ``rows`` (n,), strictly ascending, as an array (n, L, D)."""
        try:
            if self.in_place:
                return self.read_in_place(rows)
            if rows[-1] - rows[0] == len(rows) - 1:
                return self.dataset[rows[0] : rows[-1] + 1]
            return self.dataset[rows]
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read, videos {rows[0]} to {rows[-1]}: {error}") from None

    def read_in_place(self, rows: np.ndarray) -> np.ndarray:
        """Read each run of neighbouring videos at once; the disk hears of all of them first."""
        videos = np.empty((len(rows), *self.dataset.shape[1:]), self.dataset.dtype)
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
        own = f"{source.stem}-{zlib.crc32(str(source).encode()):08x}"
        copy = folder / f"{own}-{status.st_size:x}-{status.st_mtime_ns:x}.h5"
        if not copy.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"{folder}: cannot be written to: {error.strerror}") from None
            for outdated in folder.glob(f"{own}-*.h5"):
                outdated.unlink(missing_ok=True)
            needed, free = self.dataset.nbytes, shutil.disk_usage(folder).free
            if needed > 0.98 * free:
                raise BadInput(
                    f"{self.path}: its unpacked copy needs {needed / 1e9:.1f} GB in {folder}, where "
                    f"{free / 1e9:.1f} GB are free; make room, or set 'memory' to ram"
                )
            write_whole(copy, self.unpack)
        file = FeatureFile(copy, *self.dataset.shape[1:])
        file.path = self.path  # errors name the user's file
        return file

    def unpack(self, path: Path) -> None:
        """Write the features, contiguous and uncompressed, to a file."""
        with h5py.File(path, "w") as file:
            copy = file.create_dataset("feats", self.dataset.shape, self.dtype)
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
        n_frames: L that every file must have.
        width: D that every file must have.
        memory: ``ram`` loads the set, ``disk`` reads what is asked for, ``auto`` loads it when it fits
            comfortably (half of the memory that is free).
        device: where ``ram`` keeps the set when it fits there too.
        scratch: folder for unpacked copies of chunked files that stay on disk: for training, which reads in
            random order and would decompress a chunk again for every video. None: no copies.

    Raises:
        BadInput: a file cannot be used, two of them disagree, or a feature is not finite.
    """

    def __init__(
        self,
        files: Iterable[Path],
        n_frames: int,
        width: int,
        memory: str = "auto",
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
    ):
        self.files = [FeatureFile(path, n_frames, width) for path in files]
        self.paths = [file.path for file in self.files]
        for file in self.files:
            if file.dtype != self.files[0].dtype:
                raise BadInput(
                    f"{file.path}: {file.dtype}, but {self.files[0].path} is {self.files[0].dtype}"
                )
        self.starts = np.cumsum(
            [0] + [file.n_videos for file in self.files]
        )  # first video of each file, then N
        self.shape = (int(self.starts[-1]), n_frames, width)
        self.checked = np.zeros(len(self), dtype=bool)  # videos whose features were seen to be finite
        self.dtype = np.dtype(np.float16 if self.files[0].dtype == np.float16 else np.float32)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.loaded: Tensor | None = None
        self.unpacked: list[Path] = []  # files read from an unpacked copy
        if memory == "ram" or (memory == "auto" and self.nbytes < free_memory() / 2):
            self.load(device)
        elif scratch is not None:
            self.unpacked = [file.path for file in self.files if not file.in_place]
            self.files = [file if file.in_place else file.unpacked(scratch) for file in self.files]

    def load(self, device: torch.device | str) -> None:
        """Read the set into memory, and on to a GPU where it fits comfortably."""
        self.loaded = torch.empty(self.shape, dtype=torch.float16 if self.dtype == np.float16 else None)
        for rows in self.blocks("loading"):
            self.loaded[rows[0] : rows[-1] + 1] = torch.from_numpy(self.read_files(rows))
        if torch.device(device).type == "cuda" and self.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.loaded = self.loaded.to(device)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def facts(self) -> dict[str, Any]:
        """What a run that reads these features depends on."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "files": [str(path) for path in self.paths],
        }

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
            return self.loaded[torch.from_numpy(rows).to(self.loaded.device, non_blocking=True)]
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
    return FeatureStore(split.features, config.max_frames, config.feature_size, memory, device, scratch)


def free_memory() -> int:
    """Bytes of memory that can be had without swapping, under the limit of a container or batch job too."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        groups = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
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


def progress(items: Iterable, description: str, **options: Any) -> tqdm:
    """A progress bar that shows after two seconds, and only on a terminal."""
    return tqdm(items, description, delay=2, leave=False, disable=None, **options)


# ---------------------------------------------------------------- labels


def load_labels(config: DatasetConfig, split: Split, n_videos: int) -> np.ndarray:
    """Multi-hot labels of a split, uint8 (N, num_class), from MAT files of version 5 or 7.3.

    A class-index vector is accepted: 0-based, or 1-based if the largest value of any labelled split is
    ``num_class``.

    Raises:
        BadInput: a file cannot be read, lacks the variable, or disagrees with the features or ``num_class``.
    """
    parts = [read_mat(path, split.label_variable) for path in split.labels]
    where = f"{', '.join(map(str, split.labels))}: '{split.label_variable}'"
    labels = [
        part.reshape(-1) if part.ndim < 2 or is_index_vector(part, config.num_class) else part
        for part in parts
    ]
    if len({part.ndim for part in labels}) > 1 or labels[0].ndim > 2:
        raise BadInput(f"{where} has shape {parts[0].shape}, expected ({n_videos}, {config.num_class})")
    try:
        labels = np.concatenate(labels)
    except ValueError:
        raise BadInput(f"{where}: the files have different numbers of classes") from None
    if len(labels) != n_videos:
        raise BadInput(f"{where} has {len(labels)} rows, but {n_videos} videos have features")
    if labels.ndim == 1:
        splits = (config.test, config.query)
        others = [read_mat(path, each.label_variable) for each in splits for path in each.labels]
        one_based = any(each.max() == config.num_class for each in (labels, *others))
        labels = index_to_multi_hot(labels, config.num_class, int(one_based), where)
    if labels.shape[1] != config.num_class:
        raise BadInput(f"{where} has {labels.shape[1]} columns, but num_class is {config.num_class}")
    if not np.isin(labels, (0, 1)).all():
        raise BadInput(f"{where} must hold 0 and 1 only, found {labels[~np.isin(labels, (0, 1))][0]}")
    if not labels.any():
        raise BadInput(f"{where} has no positive label at all")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def is_index_vector(labels: np.ndarray, num_class: int) -> bool:
    """Whether a matrix is one class index a video: (N, 1) or (1, N), and not multi-hot of that width."""
    return 1 in labels.shape and labels.shape[1] != num_class or labels.shape == (1, 1)


def index_to_multi_hot(index: np.ndarray, num_class: int, base: int, where: str) -> np.ndarray:
    """One class index a video (N,), counted from ``base``, to multi-hot (N, num_class)."""
    classes = index.astype(np.float64) - base
    whole = np.isfinite(classes).all() and not (classes % 1).any()
    if not whole or classes.min() < 0 or classes.max() >= num_class:
        raise BadInput(f"{where}: class indices must be 0..{num_class - 1} or 1..{num_class}, "
                       f"found {index.min()} to {index.max()}")  # fmt: skip
    multi_hot = np.zeros((len(classes), num_class), dtype=np.uint8)
    multi_hot[np.arange(len(classes)), classes.astype(int)] = 1
    return multi_hot


def read_mat(path: Path, variable: str) -> np.ndarray:
    """One numeric variable of a MAT file, version 5 or 7.3, as MATLAB shows it.

    Raises:
        BadInput: the file is missing or damaged, or has no such variable.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such label file")
    try:
        if h5py.is_hdf5(path):  # version 7.3
            with h5py.File(path, "r") as file:
                present = sorted(name for name in file if not name.startswith("#"))
                array = file.get(variable)
                if isinstance(array, h5py.Dataset) and array.shape is not None:
                    array = array[()].T  # a 7.3 file stores arrays transposed
        else:
            present = sorted(name for name, _, _ in scipy.io.whosmat(path))
            array = scipy.io.loadmat(path, variable_names=[variable]).get(variable)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise BadInput(f"{path}: not a readable MAT file: {str(error).splitlines()[0]}") from None
    if array is None:
        raise BadInput(f"{path}: no variable '{variable}', found {present}")
    if scipy.sparse.issparse(array):
        array = array.toarray()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.size == 0:
        raise BadInput(f"{path}: '{variable}' is not a numeric array")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


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
    frames = np.broadcast_to(np.arange(n_frames, dtype=np.int16), (n_videos, n_frames))
    frames = rng.permuted(frames, axis=1)  # (N, L)
    masks = np.ones((2, n_videos, n_frames), dtype=bool)
    np.put_along_axis(masks[0], frames[:, :n_visible].astype(np.int64), False, axis=1)
    np.put_along_axis(masks[1], frames[:, -n_visible:].astype(np.int64), False, axis=1)
    return Views(order, torch.from_numpy(masks))


# ---------------------------------------------------------------- demo set


DEMO_VIDEOS = {"train": 960, "test": 480, "query": 120}


def make_demo(config: DatasetConfig) -> None:
    """Generate the files of the shipped demo set that are missing: deterministic, a second or two.

    A class is a path of three feature vectors. A video shows them in some of its frames; the others come from
    a pool of clips that all classes share, and noise and a strong nuisance (think of light and camera) lie
    over all of them, different in every frame. So no single frame tells the class, nor does the direction of
    largest variance; what the frames of a video have in common does. (At twice the nuisance, BTH's k-means
    would find nothing but nuisance in the latents.)
    """
    splits = (config.train, config.test, config.query)
    files = [path for split in splits for path in split.features + split.labels]
    present = [path for split in splits for path in split.features if path.exists()]
    if config.dataset != "demo" or all(map(Path.exists, files)) or not all(map(is_demo, present)):
        return
    width, n_frames = config.feature_size, config.max_frames
    rng = np.random.default_rng(0)
    classes = rng.standard_normal((config.num_class, 3, width), np.float32)
    pool = rng.standard_normal((40, width), np.float32)
    nuisance = 0.5 * rng.standard_normal((6, width), np.float32)
    for number, split in enumerate(splits):
        rng = np.random.default_rng([1, number])
        n_videos = DEMO_VIDEOS[split.name]
        label = rng.permutation(n_videos) % config.num_class
        phase = rng.integers(3, size=(n_videos, n_frames))
        shown = classes[label[:, None], phase]  # (N, L, D)
        clips = pool[rng.integers(len(pool), size=(n_videos, n_frames))]
        relevant = rng.random((n_videos, n_frames, 1)) < 0.4
        features = np.where(relevant, shown, clips)
        features += rng.standard_normal((n_videos, n_frames, len(nuisance)), np.float32) @ nuisance
        features += 1.1 * rng.standard_normal(features.shape, np.float32)
        multi_hot = np.eye(config.num_class, dtype=np.uint8)[label]
        for path, write, content in (
            *((path, save_features, features) for path in split.features),
            *((path, save_labels, multi_hot) for path in split.labels),
        ):
            if not path.exists():
                write_whole(path, functools.partial(write, content=content))


def is_demo(path: Path) -> bool:
    """Whether a feature file is one that ``make_demo`` wrote, and not the user's."""
    try:
        with h5py.File(path, "r") as file:
            return "demo" in file.attrs
    except OSError:
        return False


def save_labels(path: Path, content: np.ndarray) -> None:
    """Write multi-hot labels (N, num_class) as the field does: MAT version 5, variable ``labels``."""
    with open(path, "wb") as file:
        scipy.io.savemat(file, {"labels": content})


def save_features(path: Path, content: np.ndarray) -> None:
    """Write features (N, L, D) as the field does: contiguous, uncompressed, dataset ``feats``."""
    with h5py.File(path, "w") as file:
        file.attrs["demo"] = True
        file["feats"] = content


# ---------------------------------------------------------------- report


def report(config: DatasetConfig) -> None:
    """Print what a dataset holds, having read all of it.

    Raises:
        BadInput: a file is broken; what stands before it is printed.
    """
    print(f"{config.path}: {config.dataset}, {config.num_class} classes, "
          f"L = {config.max_frames} frames of width D = {config.feature_size}")  # fmt: skip
    for split in (config.train, config.test, config.query):
        if split.name == "query" and config.query_is_database:
            print("query: the database itself; every video stays in it")
            continue
        print(f"{split.name}:")
        store = open_store(config, split, "disk", "cpu")
        for file in store.files:
            size = file.path.stat().st_size
            print(f"  {file.path}: {file.dataset.shape} {file.dtype}, {file.layout}, {size / 1e6:.1f} MB")
        zero = sum(
            int((~store.read_files(rows).any(-1)).sum()) for rows in store.blocks(f"reading {split.name}")
        )
        print(
            f"  all {len(store)} videos are finite; "
            f"all-zero frames: {zero} of {len(store) * config.max_frames}"
        )
        if split.labels:
            labels = load_labels(config, split, len(store))
            each, per_class = labels.sum(1), labels.sum(0)
            print(f"  labels '{split.label_variable}': {each.min()} to {each.max()} classes a video "
                  f"(mean {each.mean():.2f}), {(each == 0).sum()} videos without; {per_class.min()} to "
                  f"{per_class.max()} videos a class (median {np.median(per_class):g})")  # fmt: skip


def main(arguments: list[str]) -> int:
    """Report the dataset JSONs named on the command line."""
    from engine.settings import check_blocks  # the entry point stands above the engine, the module below it

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python data.py Json/x.json ...\nReports what a dataset holds; exits 2 if it is broken.")
        return 0 if arguments else 2
    try:
        for path in arguments:
            config = load_config(path)
            check_blocks(config)
            make_demo(config)
            report(config)
    except BadInput as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # `engine.settings` imports this module by its name: let both be the same module, with one BadInput.
    sys.modules["data"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
