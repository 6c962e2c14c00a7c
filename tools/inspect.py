"""``python -m tools.inspect Json/x.json``: what a dataset holds, all of it read; 2 if a run refuses it."""

import sys

import numpy as np

from data import open_store
from engine.demo import make_demo
from engine.launch import exit_status, show
from engine.settings import fields
from engine.systems import System, check_blocks, resolve, systems
from formats.dataset import DatasetConfig, find_json, load_config
from formats.files import BadInput
from formats.labels import load_labels
from formats.recipe import in_words


def report(config: DatasetConfig) -> None:
    """Print what a dataset holds, having read all of it.

    Raises:
        BadInput: a run would refuse it; what stands before it is printed.
    """
    counts = {}
    print(f"{config.path}: {config.dataset}, {config.num_class} classes, "
          f"L = {config.max_frames} frames of width D = {config.feature_size}")  # fmt: skip
    if config.query_is_database:
        print("queries: the database itself (test); every video stays in it")
    for split in (config.train, config.test) + (() if config.query_is_database else (config.query,)):
        print(f"{split.name}:")
        store = open_store(config, split, "disk", "cpu")
        for file in store.files:
            size = file.path.stat().st_size
            print(f"  {file.path}: {file.shape} {file.dtype}, {file.layout}, {size / 1e6:.1f} MB")
        counts[split.name] = len(store)
        if store.recipe:
            print(f"  recipe: {in_words(store.recipe)}")
        zero, least, most = 0, np.inf, -np.inf
        for rows in store.blocks(f"reading {split.name}"):
            features = store.read_files(rows)
            zero += int((~features.any(-1)).sum())
            least, most = min(least, features.min()), max(most, features.max())
        print(f"  all {len(store)} videos are finite, values from {least:.3g} to {most:.3g}; "
              f"all-zero frames: {zero} of {len(store) * config.max_frames}")  # fmt: skip
        if store.padding:
            print(f"  warning: {store.padding}")
        if split.labels:
            labels, notes = load_labels(config, split, store.n_videos)
            for note in notes:
                print(f"  {note}")
            each, per_class = labels.sum(1), labels.sum(0)
            print(f"  labels '{split.label_variable}': {each.min()} to {each.max()} classes a video "
                  f"(mean {each.mean():.2f}), {(each == 0).sum()} videos without; {per_class.min()} to "
                  f"{per_class.max()} videos a class (median {np.median(per_class):g})")  # fmt: skip

    named = [system for system in systems() if system.settings.block in config.blocks]
    for system in systems():
        if system not in named:
            epochs = show(system.settings.max_iter).replace(" ", " + ")
            print(f"no block '{system.settings.block}': {system.name} has its published settings, "
                  f"{epochs} epochs among them")  # fmt: skip
    refusals = {system.name: refused(config, system, counts) for system in named or systems()[:1]}
    if refusals := [f"{name} would refuse it: {'; '.join(why)}" for name, why in refusals.items() if why]:
        raise BadInput(f"{config.path}: {'; '.join(refusals)}")


def refused(config: DatasetConfig, system: System, counts: dict[str, int]) -> list[str]:
    """What a system would refuse: settings, else their disagreement with the numbers of videos by split."""
    try:
        settings = resolve({}, {"stage": system.stages[0], "data_set_config": str(config.path)})
    except BadInput as error:
        return [str(error)]
    problems, k = [], max(settings.ks)
    if counts["test"] < k:
        problems.append(f"mAP@{k} needs a database of {k} videos, found {counts['test']}: set smaller 'ks'")
    n_train = counts["train"]
    for name, most, of in (
        ("cfg.n_clusters", 2 * n_train, f"codes of both views of the {n_train} training videos"),
        ("bth.n_anchors", n_train, "training videos"),
    ):
        if name in fields(system.settings) and settings.get(name) > most:
            problems.append(f"'{name}' is {settings.get(name)}, more than the {most} {of}")
    return problems


def main(arguments: list[str]) -> int:
    """Report the dataset JSONs named on the command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m tools.inspect Json/x.json ...")
        print("Reports what a dataset holds; exits 2 if a run would refuse it.")
        return 0 if arguments else 2

    def work() -> None:
        for path in arguments:
            config = load_config(find_json(path))
            check_blocks(config)
            make_demo(config)
            report(config)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
