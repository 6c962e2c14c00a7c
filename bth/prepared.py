"""The four prepared files of BTH: where they are, what they hold, what they were made from.

Each is an HDF5 file under its published name that keeps, as an attribute, what it was made from. A file
without the attribute is a published one and is taken as it is.

Axes: N training videos, H latent width, m anchors.
"""

import itertools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from bth import model
from bth.settings import BTHSettings
from bth.similarity import BLOCK, GRAPH_SIZES, Similarity
from data import open_store
from engine.checkpoint import load_weights
from engine.device import check_stop
from formats.files import BadInput, expand, progress, write_whole
from formats.hdf5 import find_array, read_text, reading, write_texts
from formats.weights import digest

MADE_FROM = "made_from"  # the attribute
FROM_LATENTS = ("anchors", "train_assit", "sim_matrix")  # the files that stage bth.prepare makes
MIN_ANCHORS = max(GRAPH_SIZES)


class Prepared:
    """The four prepared files of a run, read when they are asked for.

    Args:
        settings: of the run.
        n_videos: N that every file must have.

    Raises:
        BadInput: two of them are the same file.
    """

    def __init__(self, settings: BTHSettings, n_videos: int):
        folder = expand(settings.result_weight_dir)
        self.settings, self.n_videos, self.hidden_size = settings, n_videos, settings.hidden_size
        self.paths = {
            name: expand(getattr(settings.bth, name) or str(folder / f"{name}.h5"))
            for name in ("latent_feats", *FROM_LATENTS)
        }
        for (name, path), (other, another) in itertools.combinations(self.paths.items(), 2):
            if path.resolve() == another.resolve():
                raise BadInput(f"'bth.{name}' and 'bth.{other}': expected two files, found {path} twice")

    @cached_property
    def latents(self) -> Tensor:
        """Latent features of the training videos, (N, H)."""
        return self.read("latent_feats", "feats", (self.n_videos, self.hidden_size), "f")

    @cached_property
    def anchors(self) -> Tensor:
        """(m, H)."""
        anchors = self.read("anchors", "feats", (None, self.hidden_size), "f")
        if len(anchors) < MIN_ANCHORS:
            path = self.paths["anchors"]
            raise BadInput(f"{path}: 'feats': expected at least {MIN_ANCHORS} anchors, found {len(anchors)}")
        return anchors

    @cached_property
    def pseudo_label(self) -> np.ndarray:
        """The nearest anchor of every training video, (N,)."""
        pos = self.read("train_assit", "pos", (self.n_videos, 3), "iu").numpy()
        if self.is_published("train_assit") and not self.is_published("anchors"):
            raise BadInput(f"{self.paths['train_assit']}: a published file, whose anchors are not those made "
                           f"here ({self.paths['anchors']}); name both published files, or none")  # fmt: skip
        if pos.min() < 0 or pos.max() >= len(self.anchors):
            raise BadInput(
                f"{self.paths['train_assit']}: 'pos': expected anchors 0 to {len(self.anchors) - 1} "
                f"({self.paths['anchors']}), found {pos.min()} to {pos.max()}"
            )
        return pos[:, 0]

    @cached_property
    def similarity(self) -> Similarity:
        """Tags between training videos."""
        check_there(self.paths["sim_matrix"])
        return Similarity(self.paths["sim_matrix"], self.n_videos)

    @cached_property
    def stamp(self) -> str:
        """What pseudo labels and similarity are made from."""
        return f"latents {digest(self.latents)}, anchors {digest(self.anchors)}"

    def is_published(self, name: str) -> bool:
        """Whether the file is there and was not made here.

        Raises:
            BadInput: it is there, but no HDF5 file.
        """
        return self.paths[name].exists() and made_from(self.paths[name]) is None

    def check_published(self) -> None:
        """Read the published ones among the files, all of them: before training, not after it.

        Raises:
            BadInput: one of them cannot be used.
        """
        for name, attribute in (("latent_feats", "latents"), ("anchors", "anchors"),
                                ("train_assit", "pseudo_label"), ("sim_matrix", "similarity")):  # fmt: skip
            if self.is_published(name):
                getattr(self, attribute)
        if self.is_published("sim_matrix"):
            for start in progress(range(0, self.n_videos, BLOCK), "checking similarity"):
                self.similarity.rows(np.arange(start, min(start + BLOCK, self.n_videos)))
                check_stop()

    def check(self, mask_only: Path | None = None) -> None:
        """See that all that training reads can be used and was made from what is here now.

        Args:
            mask_only: the network whose latents they must be; None: any.

        Raises:
            BadInput: a file cannot be used, or another run has used the same files since it was made.
        """
        _, _ = self.pseudo_label, self.similarity
        made_here = [name for name in FROM_LATENTS if not self.is_published(name)]
        if made_here:
            self.check_latents(mask_only)
        for name in made_here:
            found = made_from(self.paths[name])
            wanted = [] if name == "anchors" else [f"anchors {digest(self.anchors)}"]
            if self.paths["latent_feats"].exists():
                wanted.append(f"latents {digest(self.latents)}")
            if not all(part in found for part in wanted):
                others = f"latents than {self.paths['latent_feats']}"
                if name != "anchors":
                    others = f"{others} or anchors than {self.paths['anchors']}"
                raise BadInput(f"{self.paths[name]}: made from other {others}; run stage bth.prepare again")

    def check_latents(self, mask_only: Path | None) -> None:
        """See that the latents, if they are there and no published ones, are those of these features.

        Args:
            mask_only: the network whose latents they must be; None: any.

        Raises:
            BadInput: they are not: another run has written its own since.
        """
        path = self.paths["latent_feats"]
        if not path.exists() or self.is_published("latent_feats"):
            return
        if not made_from(path).endswith(features_stamp(self.settings, path)):
            files = ", ".join(map(str, self.settings.config.train.features))
            raise BadInput(f"{path}: made from other features than {files}; run stage bth.pretrain again")
        if mask_only is not None and not made_from(path).startswith(network_stamp(self.settings, mask_only)):
            raise BadInput(f"{path}: not the latents of {mask_only}: another run has written its own since; "
                           "give runs that go on at the same time a result_weight_dir each")  # fmt: skip

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what training reads."""
        path = self.paths["sim_matrix"]
        tags = made_from(path) or f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
        return {
            "anchors": digest(self.anchors),
            "pos": digest(torch.from_numpy(self.pseudo_label)),
            "tags": tags,
        }

    def read(self, name: str, key: str, shape: tuple[int | None, int], kinds: str) -> Tensor:
        """One array of a prepared file, float32 or int64.

        Raises:
            BadInput: the file cannot be read, or its array is not of that shape and kind, or not finite.
        """
        path = self.paths[name]
        check_there(path)
        with reading(path), h5py.File(path, "r") as file:
            array = find_array(file, key, path)
            fits = len(array.shape or ()) == 2 and all(
                want in (None, have) for want, have in zip(shape, array.shape, strict=True)
            )
            if not fits or array.dtype.kind not in kinds:
                expected = f"({', '.join('m' if size is None else str(size) for size in shape)})"
                kind = "floating-point numbers" if kinds == "f" else "integers"
                raise BadInput(
                    f"{path}: '{key}': expected {kind} {expected}, found {array.dtype} {array.shape}"
                )
            array = array[()]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            array = array.astype(np.float32 if kinds == "f" else np.int64)
        if not np.isfinite(array).all():
            raise BadInput(f"{path}: '{key}': expected finite float32 values, found NaN or infinity")
        return torch.from_numpy(array)


def make(
    path: Path, depends_on: Callable[[], str], write: Callable[[h5py.File], None], say: Callable[[str], None]
) -> None:
    """Write a prepared file, whole or not at all, unless there is one that matches, or a published one.

    Args:
        path: of the file.
        depends_on: on what, in words and digests; not asked for if the file is a published one.
        write: fills the open file.
        say: tells the user which.
    """
    if (stamp := wanted(path, depends_on, say)) is not None:
        write_stamped(path, stamp, write, say)


def wanted(path: Path, depends_on: Callable[[], str], say: Callable[[str], None]) -> str | None:
    """What a prepared file is to be made from; None: there is one. The rest as in ``make``."""
    found = made_from(path) if path.exists() else ""
    if found is None:
        say(f"{path}: there already, taken as it is")
        return None
    if found == (stamp := depends_on()):
        say(f"{path}: up to date, kept")
        return None
    return stamp


def write_stamped(
    path: Path, stamp: str, write: Callable[[h5py.File], None], say: Callable[[str], None]
) -> None:
    """Write a prepared file with what it was made from; the rest as in ``make``."""
    anew = " anew, the one there was made from something else" if path.exists() else ""

    def fill(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            write(file)
            write_texts(file, {MADE_FROM: stamp})

    write_whole(path, fill)
    say(f"{path}: written{anew}")


def made_from(path: Path) -> str | None:
    """What a prepared file says it was made from; None: it is a published one.

    Raises:
        BadInput: it is not there, or no HDF5 file.
    """
    check_there(path)
    with reading(path), h5py.File(path, "r") as file:
        found = read_text(file, MADE_FROM) or ""
    return found if found.startswith(("network ", "latents ")) else None


def check_there(path: Path) -> None:
    """See that a prepared file is there.

    Raises:
        BadInput: it is not.
    """
    if not path.exists():
        hint = "python run.py --stage bth.pretrain makes the latents, --stage bth.prepare the other files"
        raise BadInput(f"{path}: no such file; {hint}")


def network_stamp(settings: BTHSettings, checkpoint: Path) -> str:
    """How a file says that it was made from this mask-only network."""
    net = load_weights(checkpoint, settings, ("bth.pretrain",), model).net
    return f"network {digest(*net.state_dict().values())}"


def features_stamp(settings: BTHSettings, latents: Path) -> str:
    """How a file of latents says that it was made from these training videos.

    By their digest; by names and sizes where the file that is there says so: it is of an older version.
    """
    config = settings.config
    older = f"features {[(path.name, path.stat().st_size) for path in config.train.features]}"
    if latents.exists() and (made_from(latents) or "").endswith(older):
        return older
    return f"features {open_store(config, config.train, 'disk', 'cpu').facts['digest']}"
