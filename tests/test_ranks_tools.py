"""Tools in several processes: what a killed run left, another number of them finishes to the same bytes."""

import os
import shutil

from synthetic import ROOT
from test_ranks import ended, ours, started

from formats.codefile import record

KILLED = """
import os, signal, sys
import tools.encode
from engine import ranks
from engine.launch import launch
from pipeline import train_model
from run import settings

encode_blocks = tools.encode.encode_blocks

def killed(*arguments):
    for block, codes in enumerate(encode_blocks(*arguments)):
        if (ranks.rank(), block) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        yield codes

tools.encode.encode_blocks = killed
sys.exit(launch(train_model, settings, sys.argv[1:]))
"""


def test_codes_of_a_killed_rank_are_finished_by_one_and_by_three(start, dataset, tmp_path):
    """Blocks of 20 videos, of the fourth one a half."""
    assert start("--stage", "pretrain")[0] == 0
    options = ("--stage", "tools.encode", "--batch_size", 20)
    (tmp_path / "script.py").write_text(KILLED)
    form = ("--data_set_config", dataset.path, "--device", "cpu")
    status, _, err = ended(started(2, tmp_path / "script.py", *form, *options, cwd=tmp_path / "work"))
    assert status != 0
    assert "rank 0 of 2 has lost another one" in ours(err)[0]
    (part,) = (tmp_path / "work/code").iterdir()
    assert part.stat().st_size >= 70 * record(16).itemsize
    os.truncate(part, 70 * record(16).itemsize)
    shutil.copytree(tmp_path / "work", tmp_path / "three")

    assert ended(started(3, ROOT / "run.py", *form, "--resume", cwd=tmp_path / "three"))[0] == 0
    assert start("--resume")[0] == 0
    assert start(*options)[0] == 0
    for split in ("test", "query"):
        files = (f"{run}_16_{split}.h5" for run in ("work/code/3", "work/code/2", "three/code/2"))
        found = [(tmp_path / file).read_bytes() for file in files]
        assert found[1] == found[0]
        assert found[2] == found[0]
