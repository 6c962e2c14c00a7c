"""Videos decoded in processes ahead of a network; one that cannot be used is a reason, and stops nothing."""

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from formats.files import BadInput
from formats.video import Undecodable, read_frames
from tools.listing import Video

THUMBNAIL_WIDTH = 160
# How processes start. Fork is sooner and takes any ``prepare``; it was Linux' own way until Python 3.14.
# None: the system's own way; a process then imports ``prepare`` from its module.
START_METHOD = "fork" if sys.platform == "linux" else None


class Seen(NamedTuple):
    """What a process makes of a video."""

    frames: np.ndarray  # (L, C, H, W)
    thumbnail: bytes  # a JPEG
    missing: int  # frames, as in ``formats.video.Clip``


class DecoderDied(Exception):
    """A process that decodes has died.

    Args:
        videos: numbers of those that it may have died of.
    """

    def __init__(self, videos: set[int]):
        super().__init__(videos)
        self.videos = videos


class Clips(Dataset):
    """Videos as a network wants them.

    Args:
        videos: to decode.
        n_frames: L of each.
        prepare: makes a PIL image an array (C, H, W), the same shape of all.
        n_processes: that decode; 0: this one does.

    Attributes:
        crashed: numbers of the videos that are not to be tried again.
    """

    def __init__(
        self, videos: Sequence[Video], n_frames: int, prepare: Callable[[Any], np.ndarray], n_processes: int
    ):
        self.videos, self.n_frames, self.prepare, self.n_processes = videos, n_frames, prepare, n_processes
        self.crashed: set[int] = set()
        # (pid, video) of every process, for when it dies
        self.under_way = torch.full((max(1, n_processes), 2), -1).share_memory_()

    def batches(self, places: Sequence[range]) -> Iterator[list[Seen | str | BadInput]]:
        """The videos of each batch, decoded ahead.

        PyTorch's handler of SIGCHLD raises wherever this process is, in an exchange of the ranks, too. So it
        is in place only while a batch is waited for; of a process that dies meanwhile, the wait tells.

        Raises:
            DecoderDied: a process has.
        """
        handler = signal.SIG_DFL
        try:
            loader = DataLoader(
                self,
                batch_sampler=places,
                num_workers=self.n_processes,
                collate_fn=list,
                worker_init_fn=end_with_parent,
                multiprocessing_context=START_METHOD if self.n_processes else None,
            )
            ahead = iter(loader)
            handler = signal.getsignal(signal.SIGCHLD)
            for _ in places:
                signal.signal(signal.SIGCHLD, handler)
                batch = next(ahead)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                yield batch
        except RuntimeError as error:
            raise self.death(error) from None
        finally:
            signal.signal(signal.SIGCHLD, handler)

    def __getitem__(self, number: int) -> Seen | str | BadInput:
        """Video ``number``; why it cannot be used; or what is wrong with ``prepare``.

        The last is returned since what a process raises arrives as the text of its traceback.
        """
        worker = get_worker_info()
        self.under_way[worker.id if worker else 0] = torch.tensor([os.getpid(), number])
        if number in self.crashed:
            return "its decoder crashed"
        path = self.videos[number].path
        try:
            clip = read_frames(path, self.n_frames, self.prepare)
        except Undecodable as error:
            return str(error)
        except BadInput as error:
            return BadInput(f"{path}: {error}")
        return Seen(np.stack(clip.frames), thumbnail(clip.middle), clip.missing)

    def death(self, error: RuntimeError) -> DecoderDied:
        """What PyTorch says of a process that died, with the video it was at.

        Raises:
            RuntimeError: it is another error.
        """
        pids = re.findall(r"\d+", str(error)) if "DataLoader worker (pid" in str(error) else []
        found = {video for pid, video in self.under_way.tolist() if str(pid) in pids} - self.crashed
        if not found:
            raise error
        return DecoderDied(found)


def end_with_parent(_: int) -> None:
    """Have this process end with the one it decodes for, also where that is killed.

    By itself it would wait for ever to hand over what nobody takes, and keep the run locked.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def thumbnail(image: Any) -> bytes:
    """A PIL image as a small JPEG."""
    height = max(1, round(THUMBNAIL_WIDTH * image.height / image.width))
    file = io.BytesIO()
    image.resize((THUMBNAIL_WIDTH, height)).save(file, "JPEG", quality=85)
    return file.getvalue()
