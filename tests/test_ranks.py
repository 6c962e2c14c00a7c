"""More than one process: what ranks exchange, and that n of them compute what one does."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from synthetic import N_TRAIN, ROOT, Dataset, ended, forked, json_lines, ours, started, write_features

import tools.encode
from bth.model import Dropout, drop
from engine import ranks
from engine.feed import encode_blocks
from engine.launch import launch
from formats.codefile import record
from pipeline import train_model
from run import settings


@pytest.fixture
def torchrun(start, dataset, tmp_path):
    """Start ``torchrun run.py`` with two ranks where ``start`` runs it with one."""
    form = ["--data_set_config", dataset.path, "--device", "cpu"]
    begun = []

    def popen(*arguments):
        begun.append(started(2, ROOT / "run.py", *form, *arguments, cwd=tmp_path / "work"))
        return begun[-1]

    yield popen
    for process in begun:
        process.terminate()  # the launcher takes its ranks along
        process.communicate()


@pytest.mark.parametrize("n_rows", [1, 3, 8, 100])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_contiguous_and_even(monkeypatch, n, n_rows):
    monkeypatch.setenv("WORLD_SIZE", str(n))
    monkeypatch.setenv("RANK", "0")
    shares = [ranks.share(n_rows, number) for number in range(n)]
    assert [row for each in shares for row in range(each.start, each.stop)] == list(range(n_rows))
    sizes = [each.stop - each.start for each in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_single_process_has_no_group(monkeypatch):
    monkeypatch.setattr("torch.distributed.init_process_group", None)
    with ranks.joined():
        part = ranks.Part.of(5)
        assert (part.rows, part.weight) == (slice(0, 5), 1.0)
        assert ranks.agreed(3, 4) == [3, 4]
        assert ranks.GradientSum(torch.nn.Linear(2, 2).parameters()).buckets == []


@pytest.mark.parametrize("probability", [0.1, 0.0])
def test_dropout_does_not_depend_on_how_a_batch_is_cut(probability):
    x = torch.randn(2, 7, 3, 5)  # first videos of 7 pairs, and their partners
    torch.manual_seed(0)
    expected = drop(x.flatten(0, 1), Dropout(probability)).view_as(x)
    for rows in (slice(0, 2), slice(2, 7), slice(0, 7)):
        torch.manual_seed(0)
        found = drop(x[:, rows].flatten(0, 1), Dropout(probability, rows, 7))
        assert torch.equal(found, expected[:, rows].flatten(0, 1))


SCRIPT = """
import sys
import torch
from torch import nn
from bth.prepared import Prepared
from engine import ranks
from engine.launch import launch
from engine.loop import Loop
from pipeline import train_model
from run import settings

def exchanges():
    r, n = ranks.rank(), ranks.n_ranks()
    assert ranks.total(torch.tensor([r, 1.0])).tolist() == [n * (n - 1) / 2, n]
    assert ranks.agreed(r, -r) == [n - 1, 0]
    for n_rows in (0, 1, 2, 3, 7):
        rows = torch.arange(n_rows)
        assert torch.equal(ranks.gather(rows[ranks.share(n_rows)], n_rows), rows)

    # Work of rank 0, nested; its result and its exception are everybody's.
    twice = ranks.on_first(lambda: 2 * ranks.on_first(lambda: [r])())
    assert twice() == [0, 0]
    try:
        ranks.on_first(lambda: int("none"))()
    except ValueError as error:
        assert "none" in str(error)
    else:
        raise AssertionError

    # A loss over all pairs and a mean, through a network of which a part is not used; small buckets.
    for n_videos in (2, 7):
        torch.manual_seed(0)
        x = torch.randn(n_videos, 5, dtype=torch.float64)
        nets = [nn.ModuleList([nn.Linear(5, 4), nn.Linear(3, 3), nn.Linear(4, 2)]).double() for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())

        def loss(net, x, gather):
            h = net[2](net[0](x).tanh())
            return (gather(h) @ gather(h).T).exp().mean() + h.square().mean()

        loss(nets[0], x, lambda rows: rows).backward()
        sums = ranks.GradientSum(nets[1].parameters())
        assert len(sums.buckets) > 1 or n == 1
        part = ranks.Part.of(n_videos)
        (part.weight * loss(nets[1], x[part.rows], part.gather)).backward()
        sums.finish()
        for one, other in zip(nets[0].parameters(), nets[1].parameters()):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                assert (one.grad - other.grad).abs().max() < 1e-14, (one.grad, other.grad)
    print("rank", r)

def start(*options):
    form = ["--data_set_config", sys.argv[1], "--device", "cpu"]
    assert launch(train_model, settings, [*form, *options]) == 0

def stage(name, *options):
    start("--stage", name, *options)

gradients, run = [], Loop.run

def run_and_keep(loop):
    def keep(*_):  # instead of a step: every batch is one of the first weights
        gradients.append({name: weight.grad for name, weight in loop.stage.net.named_parameters()})

    torch.optim.Adam.step = keep
    run(loop)

with ranks.joined():
    ranks.BUCKET_BYTES = 100
    exchanges()
    ranks.BUCKET_BYTES = 2000
    start("--resume")
    for name in ("test", "bth.test", "tools.encode"):
        stage(name, "--batch_size", "40")
    for method in ("mean", "lsh", "itq"):
        stage("tools.baseline", "--batch_size", "40", "--method", method)
    stage("bth.pipeline", "--result_weight_dir", "other")
    stage("pipeline")
    if ranks.rank():
        Prepared.latents = None  # rank 0 alone reads them, who makes the other files of them
    stage("bth.pipeline", "--result_weight_dir", "again")
    Loop.run = run_and_keep
    one_epoch = "--max_iter", "1", "1", "--batch_size", "9"
    stage("train", "--weight_path", "weight/1_16.pth", *one_epoch)
    for name in ("pretrain", "bth.train", "bth.pretrain"):
        stage(name, *one_epoch)
    stage("conmh.train", "--max_iter", "1", "--batch_size", "9")
    if ranks.rank() == 0:
        torch.save(gradients, "gradients.pth")
"""


def three_blocks(*arguments):
    """Codes as they are made, and Ctrl-C."""
    yield from itertools.islice(encode_blocks(*arguments), 3)
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The script in 1, 2 and 3 processes, each in a copy of one folder: (that folder, its stdout) of each."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "dataset").mkdir()
    dataset = Dataset(root / "dataset")
    (root / "script.py").write_text(SCRIPT)
    (root / "work").mkdir()
    form = settings | {"data_set_config": str(dataset.path), "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "work")
        for stage in ("pretrain", "bth.pipeline"):  # runs 1, and 2 to 5
            assert launch(train_model, form, ["--stage", stage]) == 0
        with patch.context() as stopped:  # run 6, in the fourth of its blocks of 20 videos
            stopped.setattr(tools.encode, "encode_blocks", three_blocks)
            options = ("--weight_path", "weight/1_16.pth", "--batch_size", "20")
            assert launch(train_model, form, ["--stage", "tools.encode", *options]) == 130
        (part,) = Path("code").iterdir()
        os.truncate(part, 50 * record(16).itemsize)  # in the middle of a block
    found = {}
    for n in (1, 2, 3):
        folder = root / str(n)
        shutil.copytree(root / "work", folder)
        statuses, out, err = forked(n, root / "script.py", dataset.path, cwd=folder)
        assert statuses == [0] * n, err
        found[n] = folder, out
    return found


def logs(folder, *numbers):
    return [json_lines(folder / f"log/{number}.jsonl") for number in numbers]


def epochs(folder, *numbers):
    """The losses of every epoch of these runs."""
    return [event["losses"] for log in logs(folder, *numbers) for event in log if event["event"] == "epoch"]


def test_what_ranks_exchange(ran):
    for _, out in ran.values():
        assert [line for line in out.splitlines() if line.startswith("rank ")] == [
            "rank 0"
        ]  # for all of them


def test_tests_and_tools_leave_the_same_bytes(ran):
    """Batches of 40, 40 and 24 videos, and one of 6; run 6 is one that had begun."""
    found = {}
    for n, (folder, out) in ran.items():
        results = [log[-2] for log in logs(folder, 7, 8, 10, 11, 12)]
        for result in results:
            for key in ("time", "launch"):
                del result[key]
        files = [path for number in (7, 8, 11, 12) for path in (folder / "result").glob(f"{number}_*.h5")]
        files += (folder / "code").iterdir()
        lines = out.partition("run 13:")[0].splitlines()
        shown = [line for line in lines if " on " not in line and not line.startswith("in ")]  # ranks, folder
        assert len(files) == 12
        found[n] = results, {path.name: path.read_bytes() for path in files}, shown
    assert found[2] == found[1]
    assert found[3] == found[1]


def test_pipelines_leave_what_one_process_leaves(ran):
    numbers = range(13, 20)
    names = {n: [[event["event"] for event in log] for log in logs(folder, *numbers)]
             for n, (folder, _) in ran.items()}  # fmt: skip
    bth, wsch = ({n: epochs(folder, *runs) for n, (folder, _) in ran.items()}
                 for runs in (range(13, 17), range(17, 20)))  # fmt: skip
    for n in (2, 3):
        assert names[n] == names[1]
        assert bth[n][0]["mask"] == pytest.approx(bth[1][0]["mask"], rel=1e-6)
        assert wsch[n][0]["reconstruction"] == pytest.approx(wsch[1][0]["reconstruction"], rel=1e-6)
        assert [list(each) for each in wsch[n]] == [list(each) for each in wsch[1]]
        for one, other in zip(bth[1] + wsch[1][:2], bth[n] + wsch[n][:2], strict=True):
            for name, terms in one.items():
                assert other[name] == pytest.approx(terms, rel=0.02)


def test_as_many_ranks_leave_the_same_bits_again(ran):
    for folder, _ in ran.values():
        first, again = (torch.load(folder / name)["model"] for name in ("other/15_16.pth", "again/22_16.pth"))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)


# Gradients whose summands cancel: of their largest entry little more than rounding may be left. Beside each
# the weight whose gradient has summands of that size. From float64, one process is as far as several.
CANCELS = {
    # Exactly 0: it adds the same number to all logits of a query, which the softmax does not see.
    "attention.key.bias": "attention.key.weight",
    # One number for each head, here one: the sum over all videos, frames and channels, of both signs.
    "encoder.ssd.A_log": "encoder.ssd.x_proj.weight",
    "encoder.ssd.dt_bias": "encoder.ssd.x_proj.weight",
    "encoder.ssd.D": "encoder.conv.weight",
}


def test_each_pass_has_the_losses_and_gradients_of_one_process(ran):
    """Batches of 9, 9 and 2 videos: uneven parts, and with three ranks an empty one."""
    found = {n: (epochs(folder, *range(24, 29)), torch.load(folder / "gradients.pth"))
             for n, (folder, _) in ran.items()}  # fmt: skip
    losses, gradients = found[1]
    assert [list(terms) for terms in losses] == [
        ["clustering", "cluster-guided", "contrastive"],
        ["reconstruction"],
        ["pairs"],
        ["mask"],
        ["views"],
    ]
    assert len(gradients) == 6 * 3
    for n in (2, 3):
        for one, other in zip(losses, found[n][0], strict=True):
            for name, terms in one.items():
                assert other[name] == pytest.approx(terms, rel=1e-6)
        for step, (one, other) in enumerate(zip(gradients, found[n][1], strict=True)):
            assert list(one) == list(other)
            for name, a in one.items():
                b = other[name]
                assert (a is None) == (b is None), name
                if a is not None:
                    largest = one[CANCELS.get(name, name)].abs().max()
                    assert (a - b).abs().max() <= 1e-5 * largest, (n, step, name)


def processes(launcher):
    """The process of every rank, by its number."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        entries = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {int(each.removeprefix("RANK=")): int(child) for each in entries if each.startswith("RANK=")}
    return found


def wait_until(condition, *arguments):
    for _ in range(1200):  # at most a minute
        if condition(*arguments):
            return
        time.sleep(0.05)
    raise AssertionError


def has_trained(folder, n_epochs=1):
    """Whether so many epochs stand in the log of run 1."""
    path = folder / "log/1.jsonl"
    return path.exists() and path.read_text().count('"epoch",') >= n_epochs


def listens(port):
    """Whether a process waits for others there."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
        return True
    return False


def test_sigterm_stops_all_ranks_and_the_death_of_one_the_others(torchrun, start, dataset, tmp_path):
    """Two ranks, stopped; two resume, of which one is killed; one process resumes."""
    dataset.change(run=dataset.content["run"] | {"max_iter": [40, 1]})
    process = torchrun("--checkpoint_minutes", 1e-9)
    wait_until(has_trained, tmp_path / "work")
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process)
    assert status != 0
    assert ours(err) == [f"stopped; to go on with it: python {ROOT / 'run.py'} --resume 1"]
    (epoch, *_) = torch.load(tmp_path / "work/weight/1_16.part.pth")["position"]
    assert epoch > 0

    process = torchrun("--resume")
    wait_until(has_trained, tmp_path / "work", epoch + 2)
    os.kill(processes(process.pid)[1], signal.SIGKILL)
    status, _, err = ended(process)
    assert status != 0
    (line,) = ours(err)
    assert line.startswith("error: rank 0 of 2 has lost another one (")
    assert line.endswith(f"to go on with it: python {ROOT / 'run.py'} --resume 1")

    status, out, err = start("--resume")
    assert (status, err) == (0, "")
    assert "resumed run 1 in epoch" in out
    assert "pre-trained" in out
    assert sorted(path.name for path in (tmp_path / "work/weight").iterdir()) == ["1_16.pth", "2_16.pth"]
    (log,) = logs(tmp_path / "work", 1)
    assert [event["epoch"] for event in log if event["event"] == "epoch"] == list(range(1, 41))
    assert log[1]["ranks"] == 2

    assert start("--stage", "pretrain")[0] == 0  # undisturbed
    one, other = ([losses["reconstruction"]["reconstruction"] for losses in epochs(tmp_path / "work", run)]
                  for run in (4, 1))  # fmt: skip
    assert other[0] == pytest.approx(one[0], rel=1e-6)
    assert other[-1] == pytest.approx(one[-1], rel=0.02)


MEETS = """
import sys
from engine.launch import exit_status

sys.exit(exit_status(lambda: None))
"""


def test_a_signal_ends_a_rank_that_waits_for_another_to_come(tmp_path, monkeypatch):
    """Which never does."""
    (tmp_path / "script.py").write_text(MEETS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    process = started(1, "script.py", cwd=tmp_path)
    wait_until(listens, port)
    process.terminate()
    assert ended(process)[0] == -signal.SIGTERM


def test_an_error_of_one_rank_alone_is_said_once(torchrun, dataset, tmp_path):
    features = dataset.features["train"].copy()
    features[-1, 2, 5] = float("nan")  # of the second rank's part in the first batch, or of the first's
    write_features(dataset.folder / "train.h5", features)
    status, _, err = ended(torchrun("--stage", "pretrain", "--memory", "disk"))
    assert status != 0
    (line,) = ours(err)
    assert line.endswith(f"train.h5: video {N_TRAIN - 1}, frame 2: not finite")
    assert "exitcode  : 2" in err
