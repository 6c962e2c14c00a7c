"""The demo set."""

import json

import numpy as np
import torch
from synthetic import ROOT

from data import open_store
from engine import demo
from formats.dataset import load_config
from formats.labels import load_labels
from tools import inspect


class TestDemo:
    def test_is_deterministic_and_shows_the_class_over_frames(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "DEMO_VIDEOS", {"train": 40, "test": 60, "query": 40})
        content = json.loads((ROOT / "Json" / "demo.json").read_text())
        written = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(content | {"root": str(tmp_path / name)}))
            config = load_config(path)
            demo.make_demo(config)
            store = open_store(config, config.test, "ram", "cpu")
            written.append((store.read(np.arange(60)), load_labels(config, config.test, [60])[0]))
        assert torch.equal(written[0][0], written[1][0])
        assert np.array_equal(written[0][1], written[1][1])
        labels = torch.from_numpy(written[0][1]).argmax(1)
        same, other = labels[:, None] == labels, ~torch.eye(60, dtype=torch.bool)
        mean = torch.nn.functional.normalize(written[0][0].mean(1), dim=-1)
        cos = mean @ mean.T
        assert cos[same & other].mean() > cos[~same].mean() + 0.08
        assert not list((tmp_path / "a").glob("**/*.tmp"))

    def test_is_made_by_the_run_or_the_report_that_reads_it(self, tmp_path, monkeypatch, start, capsys):
        monkeypatch.setattr(demo, "DEMO_VIDEOS", {"train": 60, "test": 100, "query": 20})
        path = ROOT / "Json" / "demo.json"
        assert start("--stage", "pretrain", "--data_set_config", path, "--max_iter", 0, 0)[0] == 0
        assert len(list((tmp_path / "work/demo").iterdir())) == 6
        monkeypatch.chdir(tmp_path)
        assert inspect.main([str(path)]) == 0
        assert "all 60 videos are finite" in capsys.readouterr().out

    def test_leaves_the_users_files_alone(self, dataset):
        dataset.change(dataset="demo")
        config = load_config(dataset.path)
        (dataset.folder / "query.mat").unlink()
        before = {path: path.read_bytes() for path in dataset.folder.iterdir()}
        demo.make_demo(config)
        assert before == {path: path.read_bytes() for path in dataset.folder.iterdir()}
