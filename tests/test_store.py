"""The feature store: whatever the file and wherever it is kept, the same bits; and copies of packed files."""

import errno
import fcntl
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import data
from data import FeatureFile, FeatureStore, free_memory
from engine.feed import encode, read_ahead, to_device
from formats.files import BadInput
from formats.hdf5 import reading
from model import beside
from pretrain import masked

N, L, D = 23, 6, 16
CPU = torch.device("cpu")
PACKED = {"chunks": (5, 2, 16), "compression": "gzip"}


def features(dtype="f4", n=N, seed=0):
    return np.random.default_rng(seed).standard_normal((n, L, D)).astype(dtype)


def write(path, array, userblock=0, **options):
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.create_dataset("feats", data=array, **options)
    return path


def batches(store, n_workers, seed=0):
    """All batches of a pass, frames and masks."""
    fetch = masked(store, 0.5)(np.random.default_rng(seed))
    slices = [slice(start, start + 4) for start in range(0, len(store), 4)]
    return list(read_ahead(fetch, slices, n_workers, CPU))


class TestSameBits:
    @pytest.mark.parametrize("options", [{}, PACKED])
    @pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
    def test_of_a_pass(self, tmp_path, dtype, options):
        array = features(dtype)
        files = [
            write(tmp_path / "a.h5", array[:9], **options),
            write(tmp_path / "b.h5", array[9:], **options),
        ]
        order = np.random.default_rng(0).permutation(N)
        stores = [
            FeatureStore(files, L, D, "ram"),
            FeatureStore(files, L, D, "disk"),
            FeatureStore(files, L, D, "disk", scratch=tmp_path / "unpacked"),
        ]
        expected = torch.from_numpy(array[order].astype("f2" if dtype == "<f2" else "f4"))
        first = batches(stores[0], 0)
        assert torch.equal(torch.cat([frames for frames, _ in first]), expected)
        for store in stores:
            assert store.nbytes == expected.nbytes
            for n_workers in (0, 1, 2):
                for one, other in zip(first, batches(store, n_workers), strict=True):
                    assert all(map(torch.equal, one, other))

    def test_behind_a_user_block(self, tmp_path):
        file = FeatureFile(write(tmp_path / "a.h5", features(), userblock=1024), L, D)
        assert file.in_place
        assert np.array_equal(file.read(np.array([0, 1, 7, 22])), features()[[0, 1, 7, 22]])

    def test_consecutive_videos_in_memory_are_not_copied(self, tmp_path):
        store = FeatureStore([write(tmp_path / "a.h5", features())], L, D, "ram")
        assert store.read(np.arange(4, 9)).data_ptr() == store.loaded[4].data_ptr()
        assert torch.equal(store.read(np.array([8, 7])), store.loaded[[8, 7]])

    @pytest.mark.parametrize("memory", ["ram", "disk"])
    def test_encoding_keeps_the_order(self, tmp_path, memory):
        store = FeatureStore([write(tmp_path / "a.h5", features(), **PACKED)], L, D, memory)
        settings = SimpleNamespace(batch_size=4, num_workers=2)
        rows = encode(store, lambda frames, rows: frames.sum((1, 2)), CPU, settings, "")
        assert torch.equal(rows, torch.from_numpy(features()).sum((1, 2)))


class TestReading:
    def test_short_reads_are_continued(self, tmp_path, monkeypatch):
        file = FeatureFile(write(tmp_path / "a.h5", features()), L, D)
        whole = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:100]], at))
        assert np.array_equal(file.read(np.array([2, 3, 11])), features()[[2, 3, 11]])

    def test_without_advice(self, tmp_path, monkeypatch):
        file = FeatureFile(write(tmp_path / "a.h5", features()), L, D)
        monkeypatch.delattr(os, "posix_fadvise", raising=False)  # as on a Mac
        assert np.array_equal(file.read(np.array([2, 3, 11])), features()[[2, 3, 11]])

    def test_a_file_that_becomes_shorter_is_named(self, tmp_path):
        file = FeatureFile(write(tmp_path / "a.h5", features()), L, D)
        os.truncate(tmp_path / "a.h5", file.offset + 10 * file.video_bytes)
        file.read(np.array([9]))
        with pytest.raises(
            BadInput, match=r"a.h5: cannot be read, videos 9 to 10: the file has become shorter"
        ):
            file.read(np.array([9, 10]))

    def test_chunks_are_decompressed_once_in_file_order(self, tmp_path):
        array = features(n=40)
        file = FeatureFile(write(tmp_path / "a.h5", array, chunks=(20, L, D), compression="gzip"), L, D)
        assert file.dataset.id.get_access_plist().get_chunk_cache()[1] == 21 * file.video_bytes
        assert np.array_equal(
            np.concatenate([file.read(np.arange(i, i + 4)) for i in range(0, 40, 4)]), array
        )

    def test_in_place_only_what_is_stored_as_numpy_would(self, tmp_path):
        bfloat16 = h5py.h5t.IEEE_F32LE.copy()  # h5py calls it float32, but it takes 2 bytes
        bfloat16.set_fields(15, 7, 8, 0, 7)
        bfloat16.set_size(2)
        bfloat16.set_ebias(127)
        array = torch.from_numpy(features()).bfloat16().float().numpy()
        with h5py.File(tmp_path / "a.h5", "w") as file:
            space = h5py.h5s.create_simple(array.shape)
            h5py.h5d.create(file.id, b"feats", bfloat16, space).write(h5py.h5s.ALL, h5py.h5s.ALL, array)
            file["behind it"] = array  # else the file would end too early, and be refused
        store = FeatureStore([tmp_path / "a.h5"], L, D, "disk")
        assert np.array_equal(store.read(np.arange(N)), array)

    def test_an_array_that_was_written_in_part_is_refused(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("feats", (N, L, D), "f4", chunks=(5, L, D))[:15] = features()[:15]
        with pytest.raises(BadInput, match=r"a.h5: 'feats' is incomplete: 3 of 5 chunks were written"):
            FeatureFile(tmp_path / "a.h5", L, D)

    @pytest.mark.parametrize("options", [{}, PACKED])
    def test_one_descriptor_for_each_file(self, tmp_path, options):
        paths = [write(tmp_path / f"{name}.h5", features(), **options) for name in "abcdef"]
        before = len(os.listdir("/dev/fd"))
        store = FeatureStore(paths, L, D, "disk")
        assert len(os.listdir("/dev/fd")) == before + len(store.files)

    def test_too_many_open_files_are_no_damage(self, tmp_path):
        write(tmp_path / "a.h5", features())
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(BadInput, match=r"a.h5: too many open files: raise the limit \(ulimit -n"):
                FeatureFile(tmp_path / "a.h5", L, D)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_a_locked_file_is_no_damage(self, tmp_path):
        write(tmp_path / "a.h5", features())
        with open(tmp_path / "a.h5", "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(BadInput, match=r"a.h5: locked by another process"):
                FeatureFile(tmp_path / "a.h5", L, D)

    def test_a_missing_filter_is_named(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)
        monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
        with pytest.raises(BadInput, match=r"filter 1 \(deflate\).*pip install hdf5plugin"):
            FeatureFile(tmp_path / "a.h5", L, D)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.ENOSYS, "unable to lock file"), "no locks: set .*HDF5_USE_FILE_LOCKING=FALSE"),
            (OSError("file is already open for write/SWMR write"), "another process writes it"),
            (MemoryError(), "needs more memory than there is"),
            (PermissionError(errno.EACCES, "unable to open file"), "cannot be read: Permission denied"),
            (KeyError("Unable to open object"), r"damaged or truncated\?\): 'Unable to open object'"),
            (RuntimeError("Unspecified error"), r"damaged or truncated\?\): Unspecified error"),
            (TypeError("no numpy type"), r"damaged or truncated\?\): no numpy type"),
        ],
    )
    def test_whatever_a_file_causes_is_one_line(self, error, message):
        with pytest.raises(BadInput, match=f"^a.h5: .*{message}"), reading("a.h5"):
            raise error

    def test_memory_that_does_not_suffice_is_refused(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features())
        message = r"a.h5: with 'memory' ram the 23 videos need 0.0 GB, 0.0 GB are free; set 'memory' to disk"
        with monkeypatch.context() as patch:
            patch.setattr(data, "free_memory", lambda: 100)
            with pytest.raises(BadInput, match=message):
                FeatureStore([tmp_path / "a.h5"], L, D, "ram")

        def fail(*_, **__):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(torch, "empty", fail)  # a limit on the process
        with pytest.raises(BadInput, match="set 'memory' to disk"):
            FeatureStore([tmp_path / "a.h5"], L, D, "ram")

    def test_the_ranks_of_a_machine_share_its_memory(self, tmp_path, monkeypatch):
        array = features()
        write(tmp_path / "a.h5", array)
        monkeypatch.setattr(data, "free_memory", lambda: 5 * array.nbytes)  # of which half is to be used
        for n_ranks, fits in ((1, True), (2, True), (3, False)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_ranks))
            assert (FeatureStore([tmp_path / "a.h5"], L, D, "auto").loaded is not None) == fits
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "6")
        with pytest.raises(
            BadInput, match=r"a.h5: with 'memory' ram the 23 videos need .*\(6 ranks, each its own\)"
        ):
            FeatureStore([tmp_path / "a.h5"], L, D, "ram")

    def test_videos_that_end_in_zeros_are_counted(self, tmp_path):
        array = features()
        array[3:5, L // 2 :] = 0
        store = FeatureStore([write(tmp_path / "a.h5", array)], L, D, "disk")
        assert not store.padded.any()
        store.read(np.arange(4))
        assert store.padded.sum() == 1
        assert FeatureStore([tmp_path / "a.h5"], L, D, "ram").padded.sum() == 2

    def test_the_dataset_may_have_another_name(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for number, name in enumerate(("feats", "rgb")):
                file.create_dataset(name, data=features(seed=number), **PACKED)
        for memory in ("ram", "disk"):
            for seed, key in enumerate(("feats", "rgb")):
                store = FeatureStore([tmp_path / "a.h5"], L, D, memory, scratch=tmp_path / "x", key=key)
                assert np.array_equal(store.read(np.arange(N)), features(seed=seed))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_pageable_memory_is_not_copied_in_the_background(monkeypatch, device):
    to, found = torch.Tensor.to, []

    def recorded(tensor, *args, non_blocking=False, **options):
        found.append(non_blocking)
        return to(tensor, *args, non_blocking=non_blocking, **options)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    frames = to_device(torch.zeros(2, L, D), torch.device(device))
    beside(frames, torch.ones(2, L, dtype=torch.bool))
    assert found == [False, False]


class TestDigest:
    def facts(self, tmp_path, *arrays, memory="disk", scratch=None, **options):
        paths = [write(tmp_path / f"{number}.h5", array, **options) for number, array in enumerate(arrays)]
        return FeatureStore(paths, L, D, memory, scratch=scratch).facts

    def test_is_of_the_features_wherever_they_are(self, tmp_path):
        array, folders = features(n=200), [tmp_path / name for name in "abcde"]
        for folder in folders:
            folder.mkdir()
        first = self.facts(folders[0], array)
        assert first.keys() == {"shape", "dtype", "digest"}
        assert self.facts(folders[1], array, **PACKED) == first
        assert self.facts(folders[2], array, memory="ram") == first
        assert self.facts(folders[3], array, scratch=tmp_path / "x", **PACKED) == first
        assert self.facts(folders[4], array.astype(">f4")) == first

    def test_tells_features_that_were_replaced(self, tmp_path):
        array = features(n=200)
        first = self.facts(tmp_path, array[:100], array[100:])["digest"]
        for number, video in ((0, 0), (0, 99), (1, 0), (1, 99)):
            parts = [array[:100].copy(), array[100:].copy()]
            parts[number][video, L - 1, D - 1] += 1
            assert self.facts(tmp_path, *parts)["digest"] != first
        assert self.facts(tmp_path, array[100:], array[:100])["digest"] != first
        assert self.facts(tmp_path, array[:100], 2 * array[100:])["digest"] != first


class TestUnpacked:
    def open(self, tmp_path, **options):
        return FeatureStore([tmp_path / "a.h5"], L, D, "disk", scratch=tmp_path / "unpacked", **options)

    def test_is_made_once(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)
        store = self.open(tmp_path)
        (copy,) = (tmp_path / "unpacked").glob("*.h5")
        assert store.files[0].in_place
        assert "unpacked once" in store.place
        assert str(tmp_path / "a.h5") in store.place
        monkeypatch.setattr(FeatureFile, "unpack", None)
        assert torch.equal(self.open(tmp_path).read(np.arange(N)), torch.from_numpy(features()))
        assert [copy] == list((tmp_path / "unpacked").glob("*.h5"))

    def test_of_several_processes_one_makes_it(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)
        made, unpack = [], FeatureFile.unpack

        def slow(file, path):
            waiting.wait()  # until the other one has not found a copy, either
            made.append(path)
            unpack(file, path)

        def locked(folder):
            waiting.set() if seen else seen.append(folder)
            return lock(folder)

        waiting, seen, lock = threading.Event(), [], data.locked_folder
        monkeypatch.setattr(FeatureFile, "unpack", slow)
        monkeypatch.setattr(data, "locked_folder", locked)
        with ThreadPoolExecutor(2) as pool:
            stores = [pool.submit(self.open, tmp_path) for _ in range(2)]
        for store in stores:
            assert torch.equal(store.result().read(np.arange(N)), torch.from_numpy(features()))
        assert len(made) == 1

    def test_follows_its_source(self, tmp_path):
        write(tmp_path / "a.h5", features(), **PACKED)
        write(tmp_path / "b.h5", features(), **PACKED)
        self.open(tmp_path)
        FeatureStore([tmp_path / "b.h5"], L, D, "disk", scratch=tmp_path / "unpacked")
        (before,) = (tmp_path / "unpacked").glob("a-*")
        write(tmp_path / "a.h5", features(seed=1), **PACKED)
        os.utime(tmp_path / "a.h5", ns=(1, 1))
        assert torch.equal(self.open(tmp_path).read(np.arange(N)), torch.from_numpy(features(seed=1)))
        assert not before.exists()
        assert len(list((tmp_path / "unpacked").glob("*.h5"))) == 2

    def test_not_for_memory_nor_for_files_read_in_place(self, tmp_path):
        write(tmp_path / "a.h5", features(), **PACKED)
        write(tmp_path / "b.h5", features())
        scratch = tmp_path / "unpacked"
        FeatureStore([tmp_path / "a.h5"], L, D, "ram", scratch=scratch)
        assert not FeatureStore([tmp_path / "b.h5"], L, D, "disk", scratch=scratch).unpacked
        FeatureStore([tmp_path / "a.h5"], L, D, "disk")
        assert not scratch.exists()

    def test_that_does_not_fit_is_refused(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)
        monkeypatch.setattr(data.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(BadInput, match=r"a.h5: its unpacked copy needs 0.0 GB in .*'memory' to ram"):
            self.open(tmp_path)
        assert not list((tmp_path / "unpacked").glob("*.h5"))

    def test_that_failed_leaves_nothing(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)

        def fail(file, rows):
            raise BadInput("damaged")

        monkeypatch.setattr(FeatureFile, "read", fail)
        with pytest.raises(BadInput, match="damaged"):
            self.open(tmp_path)
        assert not list((tmp_path / "unpacked").glob("*.h5"))

    def test_errors_name_the_source(self, tmp_path):
        array = features()
        array[7, 3, 1] = np.inf
        write(tmp_path / "a.h5", array, **PACKED)
        with pytest.raises(BadInput, match=f"^{tmp_path / 'a.h5'}: video 7, frame 3: not finite"):
            self.open(tmp_path).read(np.array([7]))


class TestFreeMemory:
    def test_is_less_than_there_is(self):
        assert 0 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @pytest.mark.parametrize(
        ("groups", "folder", "limit", "used"),
        [
            ("0::/job", "job", "memory.max", "memory.current"),
            ("0::/job/part", "job", "memory.max", "memory.current"),  # the limit of a group above
            ("0::/job:cri-containerd:5", "job:cri-containerd:5", "memory.max", "memory.current"),
            ("5:cpu:/\n4:memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ],
    )
    def test_under_a_limit(self, tmp_path, monkeypatch, groups, folder, limit, used):
        folder = tmp_path / "sys/fs/cgroup" / folder
        folder.mkdir(parents=True)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8000 kB\n")
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
        (folder / "memory.stat").write_text("anon 300\ninactive_file 150\nactive_file 50\n")
        (folder / limit).write_text("1000\n")
        (folder / used).write_text("600\n")
        monkeypatch.setattr(
            data, "Path", lambda *parts: Path(tmp_path, *(part.lstrip("/") for part in parts))
        )
        assert free_memory() == 600
        (folder / limit).write_text("max\n" if limit == "memory.max" else f"{2**62}\n")
        assert free_memory() == 8000 * 1024


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", ["pinned", True]), ("mps", [False]), ("cpu", [False])]
)
def test_only_from_pinned_memory_to_cuda_a_copy_goes_on_in_the_background(monkeypatch, device, expected):
    """On MPS, and from pageable memory, it could read what is freed meanwhile."""
    seen = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: seen.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, _, non_blocking=False: seen.append(non_blocking) or x)
    frames, mask, places = (
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, dtype=torch.bool),
        torch.arange(2),
    )
    assert to_device(frames, torch.device(device)).dtype == torch.float32
    assert seen == expected
    assert to_device(places, torch.device(device)).dtype == torch.int64
    assert seen == 2 * expected
    assert to_device(mask, torch.device(device)) is mask  # its values decide shapes
    assert seen == 2 * expected
