"""A stage, ``tools.extract``: anyone's videos become frame features and a dataset JSON that is ready to run.

``--videos FOLDER|LIST.csv --name NAME`` leaves, in F = features/NAME (of the splits train, test and query):

F/<split>_feats.h5     ``feats`` (n, L, D), contiguous; attribute ``recipe`` (JSON): how they were made
F/<split>_labels.mat   multi-hot labels, and F/classes.txt, line c the name of class c: where there are any
F/<split>_names.txt    line i the name of video i, and F/thumbnails/<name>.jpg
F/skipped.csv          videos that could not be used, and why
Json/NAME.json         the dataset; where Json cannot be written to, F/NAME.json

Processes decode ahead of the network. Batches are cut from the list by position, and of each its features and
then, in one line, its outcome are appended to two files in F: a run that was killed goes on behind the last
line, with the same batches, so that all files become the same bytes.
"""

import csv
import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from engine import ranks
from engine.device import check_stop, environment, open_device
from engine.runs import Run
from engine.settings import Settings, not_negative, positive, ratio, setting
from engine.systems import System
from formats.dataset import SPLITS
from formats.files import BadInput, check_folder, expand, optional_package, progress, write_whole
from tools.backbones import Backbone, open_backbone
from tools.decoding import Clips, Seen
from tools.listing import Video, list_videos
from tools.newdataset import dataset_json, write_features, write_names_and_labels

RULE = "frame floor((i + 1/2) n / L) of n, for i in 0..L-1"
# Frames that go through a network at a time: more leave the caches (a hundred ran at a third of the speed).
CPU_FRAMES = 4


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Settings):
    """The settings of this stage."""

    fresh_stages: ClassVar[tuple[str, ...]] = ("tools.extract",)

    stage: str = setting("tools.extract", "what to run")
    videos: str | None = setting(None, "folder of videos, or a CSV file with columns file, split, class")
    name: str | None = setting(
        None, "of the new dataset, its folder and its JSON",
        lambda v: v is None or (Path(v).name == v and not v.startswith(".")), "a file name",
    )  # fmt: skip
    backbone: str = setting(
        "lite0",
        "network of the frame features: lite0, torchvision:resnet50, torchvision:vgg19, timm:NAME or "
        "module:function",
    )
    frames: int = setting(25, "frames L of a video, evenly spaced", lambda v: 2 <= v < 2**15, "2 or more")
    split: tuple[float, float, float] = setting(
        (0.5, 0.35, 0.15),
        "fractions for train, test and query, drawn by 'seed', where 'videos' gives no splits",
        lambda v: min(v) > 0 and math.isclose(sum(v), 1, abs_tol=1e-6),
        "numbers above 0, three that sum to 1",
    )
    feature_type: str = setting(
        "float16", "of the features: float16 is half the size, and rounds by less than a code can tell",
        lambda v: v in ("float16", "float32"), "float16 or float32",
    )  # fmt: skip
    max_failures: float = setting(0.1, "share of videos that may be unusable", ratio, "0 <= max_failures < 1")
    features_dir: str = setting("features", "folder of the datasets' folders")
    batch_size: int = setting(4, "videos in a batch", positive, "1 or more")
    num_workers: int = setting(1, "processes that decode ahead", not_negative, "0: decode in line")

    @classmethod
    def reads_dataset(cls, stated: Mapping[str, Any]) -> bool:
        """It makes one."""
        return False

    @property
    def source(self) -> str:
        """What is read."""
        return str(self.videos)

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        missing = [f"'{key}' must be given" for key in ("videos", "name") if self.get(key) is None]
        return [*super().problems(), *missing]


def train_model(settings: ExtractSettings, run: Run) -> Path:
    """Extract, and return the dataset JSON.

    Raises:
        BadInput: the videos, the backbone or the device cannot be used, too many videos cannot, a feature is
            not finite, a file cannot be written, or another extraction's files are in the way.
    """
    av = optional_package("av", "PyAV", "video")
    if ranks.n_ranks() > 1:
        raise BadInput("tools.extract runs in one process, with --num_workers to decode ahead of it")
    videos, splits = list_videos(expand(settings.videos), settings.split, settings.seed)
    folder = expand(settings.features_dir) / settings.name
    out = json_path(settings.name, folder)
    work = Work(folder)
    if run.find_event("start") is None:
        refuse_others(folder, out)
    elif out.exists() and not work.outcomes_path.exists():  # killed behind the last step
        work.remove()
        run.say(f"{out}: there already")
        run.end()
        return out
    device, backbone = open_device(settings), open_backbone(settings.backbone)
    run.start(splits, **environment(device), videos=len(videos))
    recipe = backbone.recipe | {"precision": settings.precision, "frames": RULE, "n_frames": settings.frames}
    recipe["versions"] = recipe["versions"] | {"av": av.__version__}
    shape, kind = (settings.frames, backbone.width), np.dtype(settings.feature_type)
    work.begin(
        {"launch": run.launch.id, "videos": fingerprint(videos), "recipe": recipe},
        kind.itemsize * math.prod(shape),
    )
    extract_all(videos, work, backbone, device, settings)

    outcomes = work.read()
    kept = [video for video, outcome in zip(videos, outcomes, strict=True) if not isinstance(outcome, str)]
    counts = {split: sum(video.split == split for video in kept) for split in SPLITS}
    write_skipped(videos, outcomes, folder)
    if lost := [split for split in SPLITS if not counts[split]]:
        raise BadInput(f"{folder / 'skipped.csv'}: no video of {', '.join(lost)} could be used")
    write_features(folder, counts, np.memmap(work.records_path, kind, "r", shape=(len(kept), *shape)), recipe)
    classes = write_names_and_labels(folder, kept)
    text = dataset_json(settings.name, folder, counts, len(classes), shape)
    write_whole(out, lambda path: path.write_text(text, encoding="utf-8"))
    numbers = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    run.say(f"{folder}: {numbers} videos, {shape[0]} frames of width {shape[1]}, {kind}")
    if n_skipped := len(videos) - len(kept):
        run.say(f"{n_skipped} of {len(videos)} videos skipped: {folder / 'skipped.csv'} says why")
    if incomplete := sum(isinstance(outcome, int) and outcome > 0 for outcome in outcomes):
        run.say(f"{incomplete} videos have fewer frames than their files promise")
    if not classes:
        run.say("no classes: what is trained on this can encode and search, a test would need labels")
    stage = "" if classes else " --stage pretrain"
    run.say(f"next: python run.py --data_set_config {shlex.quote(str(out))}{stage}")
    work.remove()
    run.end()
    return out


def json_path(name: str, folder: Path) -> Path:
    """Where the dataset JSON goes: beside the others, or where that cannot be, beside the features."""
    try:
        check_folder(Path("Json"))
    except BadInput:
        return folder / f"{name}.json"
    return Path("Json", f"{name}.json")


def refuse_others(folder: Path, out: Path) -> None:
    """See that a new extraction replaces nothing.

    Raises:
        BadInput: it would.
    """
    check_folder(folder)
    for path in (out, folder):
        if path.exists() and not (path.is_dir() and not os.listdir(path)):
            raise BadInput(
                f"{path}: there already: delete it, set another 'name', or --resume its extraction"
            )


def fingerprint(videos: Sequence[Video]) -> str:
    """Of the list: names, splits and classes, in order."""
    content = json.dumps([(video.name, video.split, video.classes) for video in videos])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- under way

Outcome = int | str  # of a video: frames that its file promised in vain; or why it could not be used


class Work:
    """What is done of an extraction: the features of the usable videos, and the outcomes of all, by batches.

    Args:
        folder: of the dataset.

    Attributes:
        n_failed: videos among those that are done that cannot be used.
    """

    def __init__(self, folder: Path):
        self.records_path, self.outcomes_path = folder / "extract.part", folder / "extract.part.jsonl"
        self.n_failed = 0

    def begin(self, said: Mapping[str, Any], record_bytes: int) -> None:
        """Start, or see that it is this extraction that was begun.

        Args:
            said: of the extraction; the first line of the outcomes.
            record_bytes: of the features of a video.

        Raises:
            BadInput: what was begun is another extraction, or a file cannot be written.
        """
        if not self.outcomes_path.exists():
            line = json.dumps(said) + "\n"
            write_whole(self.records_path, lambda path: path.touch())
            write_whole(self.outcomes_path, lambda path: path.write_text(line, encoding="utf-8"))
        begun = json.loads(self.outcomes_path.read_bytes().splitlines()[0])
        if problems := [key for key in said if begun.get(key) != said[key]]:
            raise BadInput(f"{self.outcomes_path}: was begun with other {', '.join(problems)}")
        self.record_bytes = record_bytes

    def read(self) -> list[Outcome]:
        """The outcomes of all videos that are done; both files are cut back to whole batches."""
        first, *lines = self.outcomes_path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # half a line
            lines.pop()
        batches = [json.loads(line) for line in lines]
        size = self.records_path.stat().st_size
        while sum(map(n_usable, batches)) * self.record_bytes > size:  # lost in a power cut
            batches.pop()
        os.truncate(self.outcomes_path, len(first) + sum(map(len, lines[: len(batches)])))
        os.truncate(self.records_path, sum(map(n_usable, batches)) * self.record_bytes)
        self.n_failed = sum(len(batch) - n_usable(batch) for batch in batches)
        return [outcome for batch in batches for outcome in batch]

    def append(self, features: np.ndarray, outcomes: Sequence[Outcome]) -> None:
        """Add a batch: the features of its usable videos (n, L, D), and all outcomes.

        Raises:
            BadInput: the disk is full, or worse.
        """
        line = json.dumps(outcomes) + "\n"
        for path, content in ((self.records_path, features.tobytes()), (self.outcomes_path, line.encode())):
            try:
                with open(path, "ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # the features are there before the line that counts them
            except OSError as error:
                raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
        self.n_failed += len(outcomes) - n_usable(outcomes)

    def remove(self) -> None:
        """All is in its place."""
        self.outcomes_path.unlink(missing_ok=True)
        self.records_path.unlink(missing_ok=True)


def n_usable(outcomes: Sequence[Outcome]) -> int:
    """How many videos have features."""
    return sum(not isinstance(outcome, str) for outcome in outcomes)


def extract_all(
    videos: Sequence[Video], work: Work, backbone: Backbone, device: torch.device, settings: ExtractSettings
) -> None:
    """Extract all videos that are not done.

    Raises:
        BadInput: too many cannot be used, the backbone fails, a feature is not finite, or a file cannot be
            written.
    """
    clips = Clips(videos, settings.frames, backbone.prepare, settings.num_workers)
    network = backbone.network.to(device)
    while True:
        check_failures(videos, outcomes := work.read(), work, settings)
        if len(outcomes) == len(videos):
            return
        try:
            for batch in progress(clips.batches(len(outcomes), settings.batch_size), "extracting"):
                if errors := [seen for seen in batch if isinstance(seen, BadInput)]:
                    raise errors[0]
                rows = slice(len(outcomes), len(outcomes) + len(batch))
                outcomes += extract_batch(videos[rows], batch, work, network, device, settings)
                check_failures(videos, outcomes, work, settings)
                check_stop()
        except RuntimeError as error:
            clips.note_crash(error)


def extract_batch(
    videos: Sequence[Video],
    batch: Sequence[Seen | str],
    work: Work,
    network: nn.Module,
    device: torch.device,
    settings: ExtractSettings,
) -> list[Outcome]:
    """Features and thumbnails of a batch of videos.

    Raises:
        BadInput: a feature is not finite in its type, or a file cannot be written.
    """
    usable = [(video, seen) for video, seen in zip(videos, batch, strict=True) if not isinstance(seen, str)]
    features = np.zeros(0)
    if usable:
        frames = torch.from_numpy(np.concatenate([seen.frames for _, seen in usable]))  # (n L, C, H, W)
        pieces = frames.split(CPU_FRAMES) if device.type == "cpu" else [frames]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, settings.precision == "bfloat16"):
            found = torch.cat(
                [network(piece.to(device).float()).float().cpu() for piece in pieces]
            )  # (n L, D)
        with np.errstate(over="ignore"):
            features = found.numpy().astype(settings.feature_type).reshape(len(usable), settings.frames, -1)
    for (video, seen), own in zip(usable, features, strict=True):
        if not np.isfinite(own).all():
            hint = "; float32 holds larger ones ('feature_type')" if found.isfinite().all() else ""
            raise BadInput(f"{video.path}: its features are not all finite numbers{hint}")
        path = work.records_path.with_name("thumbnails") / f"{video.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seen.thumbnail)  # half of one, after a kill, is written anew with its batch
    outcomes = [seen if isinstance(seen, str) else seen.missing for seen in batch]
    work.append(features, outcomes)
    return outcomes


def check_failures(
    videos: Sequence[Video], outcomes: Sequence[Outcome], work: Work, settings: ExtractSettings
) -> None:
    """See that not too many videos have failed, as soon as they have.

    Raises:
        BadInput: they have.
    """
    if work.n_failed > settings.max_failures * len(videos):
        path = write_skipped(videos, outcomes, work.records_path.parent)
        found = f"{work.n_failed} of the first {len(outcomes)} videos cannot be used"
        most = f"'max_failures' is {settings.max_failures:g} of {len(videos)}"
        raise BadInput(f"{path}: {found}, {most}; a larger one may be given with --resume")


# ---------------------------------------------------------------- done


def write_skipped(videos: Sequence[Video], outcomes: Sequence[Outcome], folder: Path) -> Path:
    """List the videos, among those with an outcome, that cannot be used."""

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("file", "reason"))
            rows.writerows((video.file, outcome) for video, outcome in zip(videos, outcomes, strict=False)
                           if isinstance(outcome, str))  # fmt: skip

    write_whole(folder / "skipped.csv", write)
    return folder / "skipped.csv"


SYSTEM = System("tools.extract", ExtractSettings, stages=("tools.extract",))
