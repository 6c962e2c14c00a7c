"""A stage, ``tools.extract``: anyone's videos become frame features and a dataset JSON that is ready to run.

``--videos FOLDER|LIST.csv --name NAME`` leaves, in F = features/NAME (of the splits train, test and query):

F/<split>_feats.h5     ``feats`` (n, L, D), contiguous; attribute ``recipe`` (JSON): how they were made
F/<split>_labels.mat   multi-hot labels, and F/classes.txt, line c the name of class c: where there are any
F/<split>_names.txt    line i the name of video i, and F/thumbnails/<name>.jpg
F/skipped.csv          videos that could not be used, and why
Json/NAME.json         the dataset; where Json cannot be written to, F/NAME.json

Processes decode ahead of the network. Batches are cut from the list by position; ranks take them in turn, one
each a round, and what they made of them is kept in order (``tools/underway.py``). A run that was killed goes
on behind that with the same batches, on any number of ranks, so that all files become the same bytes.
"""

import csv
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
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
from formats.recipe import Recipe
from tools.backbones import Backbone, open_backbone
from tools.decoding import Clips, DecoderDied, Seen
from tools.listing import Video, list_videos
from tools.newdataset import dataset_json, write_features, write_names_and_labels
from tools.underway import Outcome, Work

RULE = "frame floor((i + 1/2) n / L) of n, for i in 0..L-1"
# Frames that go through a network at a time: more leave the caches (a hundred ran at a third of the speed).
CPU_FRAMES = 4


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(Settings):
    """The settings of this stage."""

    fresh_stages: ClassVar[tuple[str, ...]] = ("tools.extract",)

    stage: str = setting("tools.extract", "what to run")
    videos: str | None = setting(
        None,
        "folder of videos, or a CSV file with columns file, split, class",
        also="data data_dir data_path dataset input",
    )
    name: str | None = setting(
        None, "of the new dataset, its folder and its JSON",
        lambda v: v is None or (Path(v).name == v and not v.startswith(".")), "a file name",
    )  # fmt: skip
    classes: str | None = setting(
        None, "how classes are told: by the folders right below 'videos' (or its train, test, query) that "
        "hold the clips; not given: by the CSV file's column, if it has one",
        lambda v: v in (None, "folders"), "folders",
    )  # fmt: skip
    backbone: str = setting(
        "lite0",
        "network of the frame features: lite0, torchvision:resnet50, torchvision:vgg19, timm:NAME or "
        "module:function",
        also="model network cnn",
    )
    frames: int = setting(
        25, "frames L of a video, evenly spaced", lambda v: 2 <= v < 2**15, "2 or more", also="num_frames"
    )
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
    features_dir: str = setting(
        "features", "folder of the datasets' folders", also="output out output_dir save_dir result_dir"
    )
    batch_size: int = setting(4, "videos in a batch", positive, "1 or more", also="bs batch")
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
        needed = {"videos": "FOLDER", "name": "NAME"}
        missing = [f"--{key} {value}" for key, value in needed.items() if self.get(key) is None]
        return super().problems() + [f"{' '.join(missing)} must be given"] * bool(missing)


def train_model(settings: ExtractSettings, run: Run) -> Path:
    """Extract, and return the dataset JSON.

    Raises:
        BadInput: the videos, the backbone or the device cannot be used, too many videos cannot, a feature is
            not finite, a file cannot be written, or another extraction's files are in the way.
    """
    av = optional_package("av", "PyAV", "video")
    videos, origin = ranks.on_first(list_videos)(
        expand(settings.videos), settings.split, settings.seed, settings.classes == "folders"
    )
    folder = expand(settings.features_dir) / settings.name
    out = json_path(settings.name, folder)
    work = Work(folder)
    if is_made(out, work, run):
        run.say(f"{out}: there already")
        run.end()
        return out
    device, backbone = open_device(settings), open_backbone(settings.backbone)
    run.start(origin, **environment(device), videos=len(videos))
    recipe = backbone.recipe | {"precision": settings.precision, "frames": RULE, "n_frames": settings.frames}
    recipe["versions"] = recipe["versions"] | {"av": av.__version__}
    shape, kind = (settings.frames, backbone.width), np.dtype(settings.feature_type)
    work.begin(
        {"launch": run.launch.id, "videos": fingerprint(videos), "recipe": recipe},
        kind.itemsize * math.prod(shape),
    )
    extract_all(videos, work, backbone, device, settings)
    write_dataset(out, videos, work, shape, kind, recipe, run)
    run.end()
    return out


@ranks.on_first
def is_made(out: Path, work: Work, run: Run) -> bool:
    """Whether a run to go on with was killed behind its last step.

    Raises:
        BadInput: a new one would replace something.
    """
    if run.find_event("start") is None:
        refuse_others(work.folder, out)
        return False
    if not out.exists() or work.outcomes_path.exists():
        return False
    work.remove()
    return True


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
    check_failures(videos, work, settings)
    while (done := len(work.outcomes)) < len(videos):
        places = own_places(done, len(videos), settings.batch_size)
        batches = extract_batches(places, clips, work.folder, network, device, settings)
        try:
            for own in progress(batches, "extracting", total=len(places)):
                for found in ranks.collect(own):  # in the order of the list
                    if isinstance(found, Exception):
                        raise found
                    work.append(*found)
                    check_failures(videos, work, settings)
                check_stop()
        except DecoderDied as death:
            check_stop()  # a signal to all processes is no fault of a video
            clips.crashed |= death.videos


def own_places(first: int, n_videos: int, size: int) -> list[range]:
    """The videos of this rank's batch in each round; in the last one, some ranks' may be empty."""
    ahead = ranks.rank() * size
    starts = range(first + ahead, n_videos + ahead, ranks.n_ranks() * size)
    return [range(start, min(start + size, n_videos)) for start in starts]


def extract_batches(
    places: Sequence[range],
    clips: Clips,
    folder: Path,
    network: nn.Module,
    device: torch.device,
    settings: ExtractSettings,
) -> Iterator[tuple[np.ndarray, list[Outcome]] | Exception]:
    """What this rank makes of its batches; an error is the last, for all ranks to raise."""
    try:
        for rows, batch in zip(places, clips.batches(places), strict=True):
            videos = clips.videos[rows.start : rows.stop]
            yield extract_batch(videos, batch, folder, network, device, settings)
    except (BadInput, DecoderDied) as error:
        yield error


def extract_batch(
    videos: Sequence[Video],
    batch: Sequence[Seen | str | BadInput],
    folder: Path,
    network: nn.Module,
    device: torch.device,
    settings: ExtractSettings,
) -> tuple[np.ndarray, list[Outcome]]:
    """Features of the usable ones of a batch of videos (n, L, D), their thumbnails, and all outcomes.

    Raises:
        BadInput: ``prepare`` fails, or a feature is not finite in its type.
    """
    if errors := [seen for seen in batch if isinstance(seen, BadInput)]:
        raise errors[0]
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
        path = folder / "thumbnails" / f"{video.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seen.thumbnail)  # half of one, after a kill, is written anew with its batch
    return features, [seen if isinstance(seen, str) else seen.missing for seen in batch]


def check_failures(videos: Sequence[Video], work: Work, settings: ExtractSettings) -> None:
    """See that not too many videos have failed, as soon as they have.

    Raises:
        BadInput: they have.
    """
    if work.n_failed > settings.max_failures * len(videos):
        path = write_skipped(videos, work)
        found = f"{work.n_failed} of the first {len(work.outcomes)} videos cannot be used"
        most = f"'max_failures' is {settings.max_failures:g} of {len(videos)}"
        raise BadInput(f"{path}: {found}, {most}; a larger one may be given with --resume")


# ---------------------------------------------------------------- done


@ranks.on_first
def write_skipped(videos: Sequence[Video], work: Work) -> Path:
    """List the videos, among those that are done, that cannot be used."""
    path = work.folder / "skipped.csv"

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("file", "reason"))
            done = zip(videos, work.outcomes, strict=False)
            rows.writerows((video.file, outcome) for video, outcome in done if isinstance(outcome, str))

    write_whole(path, write)
    return path


@ranks.on_first
def write_dataset(
    out: Path,
    videos: Sequence[Video],
    work: Work,
    shape: tuple[int, int],
    kind: np.dtype,
    recipe: Recipe,
    run: Run,
) -> None:
    """Put all in its place, the dataset JSON last, and say what there is.

    Args:
        out: the dataset JSON.
        videos: all of them, done.
        work: what was made of them.
        shape: of a video's features, (L, D).
        kind: of a feature.
        recipe: how they were made.
        run: whose log tells of it.

    Raises:
        BadInput: a split has no usable video, or a file cannot be written.
    """
    folder = work.folder
    kept = [
        video for video, outcome in zip(videos, work.outcomes, strict=True) if not isinstance(outcome, str)
    ]
    counts = {split: sum(video.split == split for video in kept) for split in SPLITS}
    write_skipped(videos, work)
    if lost := [split for split in SPLITS if not counts[split]]:
        raise BadInput(f"{folder / 'skipped.csv'}: no video of {', '.join(lost)} could be used")
    write_features(folder, counts, np.memmap(work.records_path, kind, "r", shape=(len(kept), *shape)), recipe)
    classes = write_names_and_labels(folder, kept)
    text = dataset_json(run.settings.name, folder, counts, len(classes), shape)
    write_whole(out, lambda path: path.write_text(text, encoding="utf-8"))
    numbers = "{train} to train on, {test} in the database (test), {query} queries".format(**counts)
    run.say(f"{folder}: {numbers}; {shape[0]} frames of width {shape[1]}, {kind}")
    if work.n_failed:
        run.say(f"{work.n_failed} of {len(videos)} videos skipped: {folder / 'skipped.csv'} says why")
    if incomplete := sum(isinstance(outcome, int) and outcome > 0 for outcome in work.outcomes):
        run.say(f"{incomplete} videos have fewer frames than their files promise")
    if not classes:
        run.say("no classes: what is trained on this can encode, search and show; a test would need classes")
    stage = "" if classes else " --stage pretrain"
    run.say(f"next: python run.py --data_set_config {shlex.quote(str(out))}{stage}")
    if not classes:
        run.say("then the same with --stage train, and with --stage tools.encode")
    work.remove()


SYSTEM = System("tools.extract", ExtractSettings, stages=("tools.extract",))
