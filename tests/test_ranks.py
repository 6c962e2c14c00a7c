"""More than one process: what ranks exchange, and that n of them compute what one does."""

import os
import subprocess
import sys

import pytest
from synthetic import ROOT

from engine import ranks


def torchrun(n_ranks, script, *arguments, cwd):
    """A script, as ``torchrun`` starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


EXCHANGES = """
import torch
from torch import nn
from engine import ranks

with ranks.joined():
    r, n = ranks.rank(), ranks.n_ranks()
    assert ranks.total(torch.tensor([r, 1.0])).tolist() == [3.0, 3.0]
    assert ranks.agreed(r, -r) == [2, 0]
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
    ranks.BUCKET_BYTES = 100
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
        assert len(sums.buckets) > 1
        part = ranks.Part.of(n_videos)
        (part.weight * loss(nets[1], x[part.rows], part.gather)).backward()
        sums.finish()
        for one, other in zip(nets[0].parameters(), nets[1].parameters()):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                assert (one.grad - other.grad).abs().max() < 1e-14, (one.grad, other.grad)
    print("rank", r)
"""


def test_what_ranks_exchange(tmp_path):
    (tmp_path / "script.py").write_text(EXCHANGES)
    process = torchrun(3, "script.py", cwd=tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.splitlines() == ["rank 0"]  # it speaks for all


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
        assert ranks.GradientSum([]).n_bytes == 0
