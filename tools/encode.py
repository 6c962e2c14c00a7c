"""A stage, ``tools.encode``: the codes of any videos, in a file (``formats/codefile.py``), in flat memory.

Of the files that ``features`` names, into ``code/<n>_<bits>.h5``; else of database and queries of the dataset
JSON, into ``code/<n>_<bits>_test.h5`` and ``..._query.h5``. Under way, codes are appended to a plain file of
records, so that a run goes on in the middle.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data import FeatureStore, open_store
from engine import ranks
from engine.checkpoint import find_weights
from engine.device import environment, open_device
from engine.feed import block_size, encode_blocks, memory_of_parts
from engine.report import what_next
from engine.runs import Run
from engine.settings import Settings, positive, setting
from engine.systems import System, systems
from formats.codefile import as_records, blocks, count_zeros, read_attributes, record, write_code_file
from formats.files import BadInput, check_folder, expand
from formats.labels import load_labels
from formats.weights import digest
from tools.codes import load_network, published_network


@dataclass(frozen=True, kw_only=True)
class EncodeSettings(Settings):
    """The settings of this stage."""

    stage: str = setting("tools.encode", "what to run")
    features: tuple[str, ...] = setting(
        (), "HDF5 files of the videos to encode, read as one; none: database and queries of the dataset JSON"
    )
    feature_key: str = setting("feats", "HDF5 dataset of the files in 'features'")
    result_code_dir: str = setting(
        "code", "folder of the files of codes", also="output out output_dir save_dir result_dir"
    )
    batch_size: int = setting(128, "videos in a batch", positive, "1 or more", also="bs batch")

    @classmethod
    def reads_dataset(cls, stated: Mapping[str, Any]) -> bool:
        """Whether a dataset JSON is needed."""
        return not stated.get("features")

    @property
    def source(self) -> str:
        """What is encoded, in words."""
        return ", ".join(self.features) or super().source

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        if self.features and self.weight_path is None:
            return ["'weight_path' must name a checkpoint: 'features' are of no dataset to find one for"]
        return []


class Source(NamedTuple):
    """Videos to encode into one file."""

    store: FeatureStore
    labels: np.ndarray | None  # multi-hot


def train_model(settings: EncodeSettings, run: Run) -> list[Path]:
    """Encode, and return the files of codes.

    Raises:
        BadInput: network or videos cannot be used, a code is not finite, or a file cannot be written.
    """
    device = open_device(settings)
    stages = tuple(name for system in systems() for name in system.tested)
    path = run.started_with("weights") or find_weights(settings, stages, published_network)
    net = load_network(path, device.type)
    net.bfloat16 = settings.precision == "bfloat16"
    sources, bits = open_sources(settings, net), net.sizes["hashcode_size"]
    folder = expand(settings.result_code_dir)
    check_folder(folder)
    run.start(f"codes of {bits} bits by {path} ({net.origin})", **environment(device), weights=str(path))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, source in sources.items():
        out = folder / f"{run.number}_{bits}{name and '_'}{name}.h5"
        encode_into(out, source, net, settings, run)
        written.append(out)
    pair = [str(written[0]), str(written[-1])]  # of one file, every video asks
    run.say(what_next(pair, pair))
    run.end()
    return written


def open_sources(settings: EncodeSettings, net: nn.Module) -> dict[str, Source]:
    """What to encode, by the name of the split, opened and of the network's width."""
    config = settings.config
    if config is None:
        files = [expand(name) for name in settings.features]
        width, key = net.sizes["input_size"], settings.feature_key
        return {"": Source(FeatureStore(files, net.n_frames, width, "disk", key=key), None)}
    if config.feature_size != net.sizes["input_size"]:
        found = f"the network's are {net.sizes['input_size']}"
        raise BadInput(f"{config.path}: its features are {config.feature_size} wide, {found}")
    sources = {}
    for split in [config.test] if config.query_is_database else [config.test, config.query]:
        store = open_store(config, split, memory_of_parts(settings), "cpu")
        labels = load_labels(config, split, store.n_videos)[0] if split.labels else None
        sources[split.name] = Source(store, labels)
    return sources


def encode_into(out: Path, source: Source, net: nn.Module, settings: EncodeSettings, run: Run) -> None:
    """Encode the videos of a source into a file, going on where an earlier process stopped.

    Raises:
        BadInput: a code is not finite, the file cannot be written, or there is one of other codes.
    """
    store, bits, device = source.store, net.sizes["hashcode_size"], next(net.parameters()).device
    kind = record(bits)
    said = {
        "system": net.system,
        "dataset": net.origin,
        "digest": digest(*net.state_dict().values()),
        "settings": json.dumps({key: settings.get(key) for key in ("precision", "batch_size")}),
        "sources": json.dumps([str(path) for path in store.paths]),
        "features": store.facts["digest"],
    }
    # The launch, too: another log folder may give out the same number.
    own = "-".join(key[:8] for key in (run.launch.id, said["digest"], said["features"]))
    part = out.with_name(f"{out.stem}-{own}.known.part")
    out.with_name(f"{out.stem}-{own}.part").unlink(missing_ok=True)  # of version 1.1: does not know the zeros
    done = ranks.on_first(n_done)(out, part, said, block_size(device, settings), kind.itemsize)
    if done is None:
        run.say(f"{out}: there already")
        return
    encoded = encode_blocks(
        store, lambda frames, _: net.hash(frames), device, settings, "codes", done, torch.int8
    )
    write_part(part, encoded, done, kind.itemsize)
    run.say(ranks.on_first(finish)(out, part, said, source, bits))


def n_done(out: Path, part: Path, said: Mapping, block: int, record_bytes: int) -> int | None:
    """How many videos were encoded before, in whole batches: others might round differently; None: all."""
    if is_made(out, said):
        part.unlink(missing_ok=True)  # killed between the two
        return None
    return part.stat().st_size // record_bytes // block * block if part.exists() else 0


def write_part(part: Path, encoded: Iterator[Tensor], done: int, record_bytes: int) -> None:
    """Append the records of codes, of all ranks, to the first ``done`` of a file; rank 0 does.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        with open(part if ranks.rank() == 0 else os.devnull, "ab") as file:
            if ranks.rank() == 0:
                os.truncate(part, done * record_bytes)
            for codes in encoded:
                file.write(as_records(codes).tobytes())
    except OSError as error:
        raise BadInput(f"{part}: cannot be written: {error.strerror}") from None


def finish(out: Path, part: Path, said: Mapping, source: Source, bits: int) -> str:
    """Make the file of codes out of its records; returns what to tell of it."""
    records = np.memmap(part, record(bits), "r")
    if not is_made(out, said):  # meanwhile
        write_code_file(out, records, bits, source.labels, said)
    zeros = sum(int(count_zeros(records["known"][rows], bits).sum()) for rows in blocks(len(records)))
    part.unlink()
    ties = f"; {zeros} entries were 0 (frames in a tie) and count as +1" if zeros else ""
    return f"{out}: {len(source.store)} videos{ties}"


def is_made(out: Path, said: Mapping) -> bool:
    """Whether a file of codes is there already.

    Raises:
        BadInput: one of other codes is.
    """
    if not out.exists():
        return False
    own = {key: value for key, value in said.items() if key != "sources"}  # these may be moved
    if not own.items() <= read_attributes(out).items():
        raise BadInput(f"{out}: holds codes of another network or other videos; set 'result_code_dir'")
    return True


SYSTEM = System("tools.encode", EncodeSettings, stages=("tools.encode",))
