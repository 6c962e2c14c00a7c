"""The feature store: whatever the file and wherever it is kept, the same bits; and copies of packed files."""

import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import data
from data import FeatureFile, FeatureStore, free_memory
from engine.feed import encode, read_ahead
from formats.files import BadInput
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


class TestUnpacked:
    def open(self, tmp_path, **options):
        return FeatureStore([tmp_path / "a.h5"], L, D, "disk", scratch=tmp_path / "unpacked", **options)

    def test_is_made_once(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)
        store = self.open(tmp_path)
        (copy,) = (tmp_path / "unpacked").iterdir()
        assert store.files[0].in_place
        assert "unpacked once" in store.place
        assert str(tmp_path / "a.h5") in store.place
        monkeypatch.setattr(FeatureFile, "unpack", None)
        assert torch.equal(self.open(tmp_path).read(np.arange(N)), torch.from_numpy(features()))
        assert [copy] == list((tmp_path / "unpacked").iterdir())

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
        assert len(list((tmp_path / "unpacked").iterdir())) == 2

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
        assert not list((tmp_path / "unpacked").iterdir())

    def test_that_failed_leaves_nothing(self, tmp_path, monkeypatch):
        write(tmp_path / "a.h5", features(), **PACKED)

        def fail(file, rows):
            raise BadInput("damaged")

        monkeypatch.setattr(FeatureFile, "read", fail)
        with pytest.raises(BadInput, match="damaged"):
            self.open(tmp_path)
        assert not list((tmp_path / "unpacked").iterdir())

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
