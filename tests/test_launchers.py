"""Who started this process: nobody but the user, a shell or scheduler that sets some variables, torchrun."""

import pytest

from engine.ranks import local_rank, n_ranks, rank


@pytest.fixture
def variables(monkeypatch):
    """Set these of the variables of a launcher, and none of the others."""

    def only(**values):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return only


@pytest.mark.parametrize(
    "values", [{"RANK": "3"}, {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}]
)
def test_a_part_of_the_variables_is_one_process(variables, start, tmp_path, values):
    variables(**values)
    assert (rank(), n_ranks(), local_rank()) == (0, 1, 0)
    status, _, err = start("--stage", "pretrain", "--max_iter", 1, 1)
    assert (status, err) == (0, "")
    assert (tmp_path / "work/log/1.txt").exists()


def test_ranks_without_a_meeting_place_are_refused_in_one_line(variables, start):
    variables(RANK="1", WORLD_SIZE="2")
    expected = "error: RANK and WORLD_SIZE are set, MASTER_ADDR is not: start several processes by torchrun, "
    assert start("--stage", "pretrain") == (2, "", expected + "or unset them for a single one\n")
