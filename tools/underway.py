"""What is done of an extraction, so that a run which was killed goes on behind it.

Of each batch its features and then, in one line, the outcomes of its videos are appended to two files in the
dataset's folder, by rank 0; all ranks know the outcomes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import ranks
from formats.files import BadInput, write_whole

Outcome = int | str  # of a video: frames that its file promised in vain; or why it could not be used


class Work:
    """What is done of an extraction: the features of the usable videos, and the outcomes of all, by batches.

    Args:
        folder: of the dataset.

    Attributes:
        outcomes: of the videos that are done.
        n_failed: how many of these cannot be used.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.records_path, self.outcomes_path = folder / "extract.part", folder / "extract.part.jsonl"

    def begin(self, said: Mapping[str, Any], record_bytes: int) -> None:
        """Start, or go on with what was begun.

        Args and errors: as of ``read``.
        """
        self.outcomes = self.read(said, record_bytes)
        self.n_failed = len(self.outcomes) - n_usable(self.outcomes)

    @ranks.on_first
    def read(self, said: Mapping[str, Any], record_bytes: int) -> list[Outcome]:
        """The outcomes of all videos that are done; both files are cut back to whole batches, or begun.

        Args:
            said: of the extraction; the first line of the outcomes.
            record_bytes: of the features of a video.

        Raises:
            BadInput: what was begun is another extraction, or a file cannot be written.
        """
        if not self.outcomes_path.exists():
            line = json.dumps(said) + "\n"
            write_whole(self.records_path, lambda path: path.touch())
            write_whole(self.outcomes_path, lambda path: path.write_text(line, encoding="utf-8"))
        first, *lines = self.outcomes_path.read_bytes().splitlines(keepends=True)
        begun = json.loads(first)
        if problems := [key for key in said if begun.get(key) != said[key]]:
            raise BadInput(f"{self.outcomes_path}: was begun with other {', '.join(problems)}")
        if lines and not lines[-1].endswith(b"\n"):  # half a line
            lines.pop()
        batches = [json.loads(line) for line in lines]
        size = self.records_path.stat().st_size
        while sum(map(n_usable, batches)) * record_bytes > size:  # lost in a power cut
            batches.pop()
        os.truncate(self.outcomes_path, len(first) + sum(map(len, lines[: len(batches)])))
        os.truncate(self.records_path, sum(map(n_usable, batches)) * record_bytes)
        return [outcome for batch in batches for outcome in batch]

    def append(self, features: np.ndarray, outcomes: Sequence[Outcome]) -> None:
        """Add a batch: the features of its usable videos (n, L, D), and all outcomes.

        Raises:
            BadInput: the disk is full, or worse.
        """
        self.outcomes += outcomes
        self.n_failed += len(outcomes) - n_usable(outcomes)
        if ranks.rank() or not outcomes:  # of a rank for which no batch was left
            return
        line = json.dumps(outcomes) + "\n"
        for path, content in ((self.records_path, features.tobytes()), (self.outcomes_path, line.encode())):
            try:
                with open(path, "ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # the features are there before the line that counts them
            except OSError as error:
                raise BadInput(f"{path}: cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """All is in its place."""
        self.outcomes_path.unlink(missing_ok=True)
        self.records_path.unlink(missing_ok=True)


def n_usable(outcomes: Sequence[Outcome]) -> int:
    """How many videos have features."""
    return sum(not isinstance(outcome, str) for outcome in outcomes)
