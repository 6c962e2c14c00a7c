"""What tests share: a small synthetic dataset on disk, the golden files, and a look into what runs leave."""

import importlib
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from formats.codefile import as_records, write_code_file
from formats.dataset import SYSTEMS

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
N_TRAIN, N_DATABASE, N_QUERY, N_FRAMES, WIDTH, N_CLASSES = 20, 104, 6, 6, 24, 4


def write_features(path: Path, features: np.ndarray, **options) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=features, **options)


def write_codes(path, codes, labels=None, digest="d" * 16, **attributes):
    """A file of codes (N, b)."""
    said = {"digest": digest, "system": "WSCH", **attributes}
    write_code_file(path, as_records(codes), codes.shape[1], labels, said)
    return path


def write_log(path: Path, *events: dict) -> Path:
    """A run's log; an event needs its name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"time": "2026-01-01 00:00:00", **each}) + "\n" for each in events))
    return path


class Dataset:
    """A dataset JSON and its files below a folder; ``change`` rewrites the JSON."""

    def __init__(self, folder: Path):
        self.folder = folder
        rng = np.random.default_rng(0)
        classes = rng.standard_normal((N_CLASSES, WIDTH)).astype(np.float32)
        self.features, self.labels = {}, {}
        for name, count in (("train", N_TRAIN), ("test", N_DATABASE), ("query", N_QUERY)):
            label = np.arange(count) % N_CLASSES
            noise = rng.standard_normal((count, N_FRAMES, WIDTH)).astype(np.float32)
            self.features[name] = classes[label][:, None] + noise
            self.labels[name] = np.eye(N_CLASSES, dtype=np.uint8)[label]
            write_features(folder / f"{name}.h5", self.features[name])
            scipy.io.savemat(folder / f"{name}.mat", {"labels": self.labels[name]})
        self.content = {
            "dataset": "synthetic",
            "root": str(folder),
            **{name: f"{name}.h5" for name in ("train", "test", "query")},
            **{f"{name}_label": f"{name}.mat" for name in ("train", "test", "query")},
            "num_class": N_CLASSES,
            "hidden_size": WIDTH,
            "max_frames": N_FRAMES,
            "run": {
                "max_iter": [2, 2],
                "lr": 1e-3,
                "batch_size": 8,
                "hidden_size": 64,
                "decoder_size": 32,
                "hashcode_size": 16,
                "cfg": {"n_clusters": 5, "p1": 0.7, "p2": 0.5},
            },
            "bth": {
                "max_iter": [2, 2],
                "batch_size": 8,
                "hidden_size": 16,
                "hashcode_size": 16,
                "n_anchors": 8,
            },
            "conmh": {
                "max_iter": 2,
                "lr": 1e-3,
                "batch_size": 8,
                "hidden_size": 16,
                "decoder_size": 12,
                "hashcode_size": 16,
                "n_blocks": 2,
                "n_heads": 3,
                "decoder_blocks": 1,
                "p": 0.5,
            },
        }
        self.path = folder / "synthetic.json"
        self.change()

    def drop_blocks(self, *names: str) -> None:
        """Of some systems, or all: a JSON as it is published. Takes effect with the next ``change``."""
        for name in names or SYSTEMS:
            del self.content[name]

    def change(self, **values) -> None:
        self.content |= values
        self.path.write_text(json.dumps(self.content))


def close(actual, expected, tolerance, floor=0.0):
    """Largest difference, relative to the largest expected entry."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= max(tolerance * expected.abs().max(), floor)


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def together(n, work):
    """Call ``work(number, collect)`` in n threads that stand for processes; ``collect`` gathers objects."""
    barrier, table = Barrier(n, timeout=20), [None] * n

    def process(number):
        def collect(own):
            barrier.wait()
            table[number] = own
            barrier.wait()
            return list(table)

        return work(number, collect)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(process, range(n)))


PREPARED = ("latent_feats", "anchors", "train_assit", "sim_matrix")


def run_pipeline(start, *options):
    status, out, err = start("--stage", "bth.pipeline", *options)
    assert (status, err) == (0, "")
    return out


def publish(folder):
    """Random files in the published format: their contents by dataset, and the options that name them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    adj = rng.integers(0, 3, (N_TRAIN, N_TRAIN)).astype(np.float32)
    np.fill_diagonal(adj, 1)
    content, options = {}, []
    for name, key, array in (
        ("anchors", "feats", rng.standard_normal((7, 16)).astype(np.float32)),
        ("train_assit", "pos", rng.permuted(np.tile(np.arange(7), (N_TRAIN, 1)), axis=1)[:, :3]),
        ("sim_matrix", "adj", adj),
    ):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file[key] = content[key] = array
        options += [f"--bth.{name}", str(folder / f"{name}.h5")]
    return content, options


def contents(path):
    with h5py.File(path, "r") as file:
        return {key: dataset[()] for key, dataset in file.items()}


def killed(*_):
    """Stands in for a function during which the process is interrupted at once."""
    raise KeyboardInterrupt


def need(module):
    """A package that only tests need; in CI it must be there."""
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


def started(n_ranks, script, *arguments, cwd):
    """A script, as ``torchrun`` starts it; for one rank, by itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    return subprocess.Popen(
        [sys.executable, *(launcher if n_ranks > 1 else []), str(script), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked(n_ranks, script, *arguments, cwd):
    """The same, run to its end without the launcher, from a process that has imported torch: sooner.

    Returns:
        The statuses, what all wrote on stdout, and on stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipeline", "bth.pipeline", "conmh.pipeline", "tools.encode", "tools.baseline"]
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": n_ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    run = [str(script), *map(str, arguments)]
    processes = [
        context.Process(target=be_rank, args=({"RANK": rank, "LOCAL_RANK": rank} | variables, run, str(cwd)))
        for rank in range(n_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    out, err = ((Path(cwd) / name).read_text() for name in ("stdout", "stderr"))
    return [process.exitcode for process in processes], out, err


def be_rank(variables, run, cwd):
    """What such a process does."""
    os.chdir(cwd)
    os.environ |= {name: str(value) for name, value in variables.items()}
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv[:] = run
    sys.path.insert(0, cwd)
    runpy.run_path(run[0], run_name="__main__")


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ours(err):
    """What the program itself said, among what the launcher says."""
    assert "terminate called" not in err  # by a thread of a group that is still open
    return [line for line in err.splitlines() if line.startswith(("error:", "stopped;"))]
