"""Read thousands of mutated files of every kind: each must be read, or refused in one line.

``python -m bench.fuzz`` makes small valid files, mutates their bytes (and, inside archives whose checksums
stay right, the parts), and hands them to the readers of the package in a process of its own, so that a crash
is seen and counted. It prints seeds, counts and the first faults; ``--kind mat5 --only 1234`` repeats one.
"""

import argparse
import io
import json
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch

import model
from bench.machine import describe
from bth.prepared import Prepared, made_from
from bth.settings import BTHSettings, Own
from data import FeatureStore
from engine.checkpoint import load_moments, load_weights
from engine.launch import first_look, resumed
from engine.systems import check_blocks, resolve
from formats.codefile import as_records, read_code_file, write_code_file
from formats.dataset import load_config
from formats.files import BadInput
from formats.labels import load_labels
from formats.weights import save_checkpoint
from pretrain import fresh_network
from tools.codes import load_network

N, L, D, H, B, C = 12, 4, 8, 64, 16, 3  # videos, frames, feature width, hidden width, bits, classes
SLOW = 10  # seconds for one file


def write_dataset(folder: Path) -> None:
    """Valid files of every kind that the readers know."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, L, D)).astype("f4")
    hot = np.eye(C, dtype="u1")[np.arange(N) % C]
    for name, options in (("features", {}), ("packed", {"chunks": (5, 2, D), "compression": "gzip"})):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("feats", data=features, **options)
    scipy.io.savemat(folder / "mat5.mat", {"labels": hot, "names": ["a", "b"], "extra": {"x": rng.random(3)}})
    scipy.io.savemat(folder / "packed5.mat", {"labels": hot}, do_compression=True)
    scipy.io.savemat(folder / "sparse5.mat", {"labels": scipy.sparse.csc_matrix(hot.astype(float))})
    with h5py.File(folder / "mat73.mat", "w", userblock_size=512) as file:
        file["labels"] = hot.T.astype(float)
    sparse = scipy.sparse.csc_matrix(hot.astype(float))
    with h5py.File(folder / "sparse73.mat", "w", userblock_size=512) as file:
        group = file.create_group("labels")
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices, sparse.indptr
        group.attrs["MATLAB_sparse"] = np.uint64(N)
    content = {
        "dataset": "fuzz", "root": str(folder), "train": "features.h5", "train_label": "",
        "test": ["features.h5", "packed.h5"], "test_label": ["mat5.mat", "packed5.mat"],
        "query": "features.h5", "query_label": "mat5.mat", "num_class": C, "hidden_size": D, "max_frames": L,
        "run": {"hidden_size": H, "decoder_size": 4, "hashcode_size": B, "lr": 1e-3, "ks": [5],
                "cfg": {"n_clusters": 4, "p1": 0.6, "p2": 0.5}},
        "bth": {"hidden_size": 8, "n_anchors": 6, "lr_decay": 0.5},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))
    for name, arrays in {
        "latent_feats": {"feats": rng.standard_normal((N, 8)).astype("f4")},
        "anchors": {"feats": rng.standard_normal((6, 8)).astype("f4")},
        "train_assit": {"pos": rng.integers(6, size=(N, 3))},
        "sim_matrix": {"indptr": np.arange(N + 1), "indices": np.arange(N, dtype="i4"),
                       "tag": np.ones(N, "i1")},
        "adj": {"adj": np.eye(N, dtype="f4")},
    }.items():  # fmt: skip
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for key, array in arrays.items():
                file[key] = array
    records = as_records(rng.integers(-1, 2, (N, B)))
    write_code_file(folder / "codes.h5", records, B, hot, {"digest": "x", "system": "WSCH"})
    settings = resolve({"data_set_config": str(folder / "dataset.json"), "stage": "train"}, {})
    net = fresh_network(settings, D)
    adam = torch.optim.Adam(net.parameters())
    sum(weight.sum() for weight in net.parameters()).backward()
    adam.step()
    save_checkpoint(folder / "1_16.pth", {
        "stage": "pretrain", "sizes": net.sizes, "settings": settings.as_dict(), "model": net.state_dict(),
        "dataset": settings.config.facts, "launch": "x", "inputs": {"features": {"shape": [N, L, D]}},
        "optimizer": adam.state_dict(), "position": (1, 0, 0), "sums": {}, "losses": {}, "seconds": 1.0,
        "logs": {},
    })  # fmt: skip
    reserved = {"event": "reserved", "runs": [1], "stages": ["train"], "launch": "x", "options": {"lr": 1e-3},
              "settings": settings.as_dict(), "dataset": settings.config.facts}  # fmt: skip
    lines = [reserved, {"event": "start", "weights": {"a": "x.pth"}}, {"event": "epoch", "losses": {}}]
    (folder / "1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to eight mutations: bits, bytes, numbers, blocks, a cut."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        place, size = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 16, 64])
        kind = rng.randrange(8)
        if kind < 2:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + size] = rng.randbytes(size)
        elif kind == 3:
            data[place : place + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
        elif kind == 4:  # a number, as lengths and offsets are
            number = rng.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(data)])
            data[place : place + 8] = number.to_bytes(8, rng.choice(["little", "big"]))
        elif kind == 5:
            del data[place : place + size]
        elif kind == 6:
            data[place:place] = data[rng.randrange(len(data)) :][:size]
        elif rng.random() < 0.5:
            del data[place:]
        data = data or bytearray(b"\0")
    return bytes(data)


class Malicious:
    """Would leave a trace if a reader ran it."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def mutated_archive(content: bytes, rng: random.Random, trace: Path) -> bytes:
    """Mutations inside the parts of a zip archive, with checksums made anew; now and then foreign code."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    victim = rng.choice(source.namelist() + [name for name in source.namelist() if name.endswith(".pkl")] * 9)
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            part = source.read(name)
            if name == victim:
                evil = name.endswith(".pkl") and rng.random() < 0.1
                part = pickle.dumps({"model": Malicious(trace)}, 2) if evil else mutated(part or b"\0", rng)
            archive.writestr(name, part)
    return target.getvalue()


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Another value or key somewhere in the first line or the whole of a JSON text."""
    first, newline, rest = content, b"", b""
    if content.startswith(b'{"event"'):
        first, newline, rest = content.partition(b"\n")
    root = json.loads(first)
    place = root
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        break
    values = [
        None,
        True,
        -1,
        0,
        1e308,
        10**30,
        float("nan"),
        "",
        "x" * 300,
        "\0",
        "../..",
        [],
        {},
        [[]],
        [0] * 50,
    ]
    action = rng.randrange(4)
    if action == 0 and isinstance(place, dict):
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[rng.choice(["x", "", "runs", "stage", "cfg", "\ud800"])] = rng.choice(values)
    else:
        place[key] = rng.choice(values)
    return json.dumps(root).encode() + newline + rest


def readers(folder: Path) -> dict[str, tuple[list[str], Callable[[Path], None]]]:
    """By kind of file: the valid ones to mutate, and what reads them."""
    form = {"data_set_config": str(folder / "dataset.json"), "stage": "train"}
    settings = resolve(form, {})
    config = settings.config

    def read_features(path: Path) -> None:
        for memory in ("disk", "ram"):
            store = FeatureStore([path], L, D, memory)
            store.read(np.array([0, len(store) - 1]))
            _ = store.facts
            for rows in store.blocks("reading"):
                store.read_files(rows)

    def read_prepared(path: Path) -> None:
        name = "sim_matrix" if path.name.startswith("adj") else path.name.partition(".")[0]
        names = ("latent_feats", "anchors", "train_assit", "sim_matrix")
        paths = {key: str(folder / f"{key}.h5") for key in names}
        own = BTHSettings(hidden_size=8, bth=Own(**paths | {name: str(path)}), config=config)
        made_from(path)
        prepared = Prepared(own, N)
        prepared.check_published()
        prepared.check()
        prepared.inputs()

    def read_labels(path: Path) -> None:
        split = replace(config.query, labels=(path,))
        load_labels(config, split, [N])

    def read_config(path: Path) -> None:
        check_blocks(load_config(path))
        for stage in ("pipeline", "bth.pipeline"):
            resolve({"data_set_config": str(path), "stage": stage}, {})

    def read_weights(path: Path) -> None:
        load_network(path, device="cpu")
        weights = load_weights(path, settings, ("pretrain",), model, to_train=True)
        load_moments(torch.optim.Adam(weights.net.parameters()), weights.optimizer, path)

    def read_log(path: Path) -> None:
        logs = path.parent / "log"
        logs.mkdir(exist_ok=True)
        os.replace(path, logs / "1.jsonl")
        launch = resumed(form, ["--resume"], first_look(["--resume"]))
        launch.lock.close()
        for run in launch.runs:
            run.started_with("weights")

    return {
        "features": (["features.h5", "packed.h5"], read_features),
        "prepared": (
            ["latent_feats.h5", "anchors.h5", "train_assit.h5", "sim_matrix.h5", "adj.h5"],
            read_prepared,
        ),
        "mat5": (["mat5.mat", "packed5.mat", "sparse5.mat"], read_labels),
        "mat73": (["mat73.mat", "sparse73.mat"], read_labels),
        "json": (["dataset.json"], read_config),
        "pth": (["1_16.pth"], read_weights),
        "codes": (["codes.h5"], read_code_file),
        "jsonl": (["1.jsonl"], read_log),
    }


def read_from(kind: str, numbers: range, seed: int, folder: Path, tell: Callable) -> None:
    """Read mutated files of a kind and tell of each: number, what came of it, seconds, why."""
    names, read = readers(folder)[kind]
    contents = [(folder / name).read_bytes() for name in names]
    work = folder / f"work-{os.getpid()}"
    work.mkdir()
    os.chdir(work)
    trace = work / "trace"
    warnings.simplefilter("error", RuntimeWarning)  # of numpy: it would be a second line
    for number in numbers:
        rng = random.Random(f"{seed} {kind} {number}")
        which = number % len(names)
        content = contents[which]
        if kind == "pth" and rng.random() < 0.7:
            content = mutated_archive(content, rng, trace)
        elif kind in ("json", "jsonl") and rng.random() < 0.7:
            content = mutated_json(content, rng)
        else:
            content = mutated(content, rng)
        path = work / names[which]
        path.write_bytes(content)
        tell((number, None, 0, ""))
        began, why = time.monotonic(), ""
        try:
            read(path)
            result = "read"
        except BadInput as error:
            result = "refused" if "\n" not in str(error) else "several lines"
        except Exception:
            result, why = "traceback", traceback.format_exc()
        if trace.exists():
            result = "EXECUTED"
        tell((number, result, time.monotonic() - began, why))


def main() -> int:
    """Print a table of kinds and counts; 1 if any file did what none may do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3000, help="of each kind (default: 3000)")
    parser.add_argument("--kind", help="only this kind")
    parser.add_argument("--only", type=int, help="only the file of this number")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    print(describe(), f"\nseed {arguments.seed}, {arguments.files} files of each kind\n", flush=True)
    print("| kind | read | refused | traceback | crash | slowest, s |\n| --- | --- | --- | --- | --- | --- |")
    wrong, shown = 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder)
        context = multiprocessing.get_context("fork")
        for kind in [arguments.kind] if arguments.kind else readers(folder):
            counts, slowest = Counter(), 0.0
            first, last = 0, arguments.files
            if arguments.only is not None:
                first, last = arguments.only, arguments.only + 1
            while first < last:  # again after every crash
                receive, send = context.Pipe(duplex=False)
                process = context.Process(
                    target=read_from, args=(kind, range(first, last), arguments.seed, folder, send.send)
                )
                process.start()
                send.close()
                number = first
                try:
                    while True:
                        number, result, seconds, why = receive.recv()
                        counts[result] += result is not None
                        slowest = max(slowest, seconds)
                        if result not in (None, "read", "refused"):
                            wrong += 1
                            shown += 1
                            if shown <= 10:
                                print(f"{kind} {number}: {result}\n{why}", file=sys.stderr)
                except EOFError:
                    process.join()
                if process.exitcode:
                    counts["crash"] += 1
                    wrong += 1
                    print(f"{kind} {number}: crash, exit code {process.exitcode}", file=sys.stderr)
                    first = number + 1
                else:
                    first = last
            wrong += slowest > SLOW
            numbers = (counts[each] for each in ("read", "refused", "traceback", "crash"))
            print(f"| {kind} | {' | '.join(map(str, numbers))} | {slowest:.1f} |", flush=True)
    print(f"\n{wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
