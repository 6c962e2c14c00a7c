"""The test of every system: encode database and queries, rank, and report (``engine/report.py``)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from data import FeatureStore, open_store
from engine import ranks
from engine.checkpoint import find_weights, load_weights
from engine.device import check_stop, environment, open_device
from engine.feed import encode, memory_of_parts
from engine.report import Codes, Result, Splits, report
from engine.runs import Run
from engine.settings import Settings
from engine.systems import System, system_of
from formats.files import BadInput, check_folder, expand
from formats.labels import load_labels
from formats.recipe import Recipe, other_recipe
from formats.weights import digest
from metrics import Evaluation, evaluate


def open_splits(settings: Settings, memory: str | None = None) -> Splits:
    """Open database and queries with their labels.

    Raises:
        BadInput: there are no labels, a file cannot be used, or the database is smaller than the largest K.
    """
    config = settings.config
    for split in (config.test, config.query):
        if not split.labels:
            reason = f"'{split.name}_label' is empty: a test needs labels"
            raise BadInput(f"{config.path}: {reason}{how_without_labels(settings.stage)}")
    memory = memory or memory_of_parts(settings)
    database = open_store(config, config.test, memory, "cpu")
    labels, notes = load_labels(config, config.test, database.n_videos)
    k, least = max(settings.ks), max(settings.ks) + settings.exclude_self
    if len(database) < least:
        needs = f"mAP@{k} needs a database of {least} videos"
        raise BadInput(f"{config.path}: {needs}, found {len(database)}; set smaller 'ks'")
    query = database if config.query_is_database else open_store(config, config.query, memory, "cpu")
    query_labels, more = load_labels(config, config.query, query.n_videos)
    notes = list(dict.fromkeys(notes + more))
    shared = labels.sum(0) > settings.exclude_self  # (num_class,) by another video than the query itself
    if alone := int((~(query_labels & shared).any(1)).sum()):
        notes.append(f"{alone} of {len(query)} queries share no class with the database: each counts 0")
    return Splits(database, query, labels, query_labels, notes)


def how_without_labels(stage: str) -> str:
    """What a stage can do where there are no labels to test with; empty: nothing, it is of no system."""
    training = system_of(stage).stages[1:-1]  # the first is the pipeline, the last the test
    if stage in training:
        return "; without labels, set 'eval_every' to 0"
    ways = ", then ".join(f"--stage {name}" for name in (*training, "tools.encode"))
    return f"; without labels, train and encode: {ways}" if training else ""


def check_splits(settings: Settings) -> None:
    """Read database and queries once, before training: what is wrong with them should not show after it.

    Raises:
        BadInput: a file cannot be used, a feature is not finite, or they are of another recipe than those
            to train on.
    """
    check_folder(expand(settings.result_dir))
    splits = open_splits(settings, memory="disk")
    training = open_store(settings.config, settings.config.train, "disk", "cpu")
    check_recipes(training.recipe, "those to train on", splits)
    for store in (splits.database, splits.query):
        if not store.checked.all():
            for number, rows in enumerate(store.blocks("checking database and queries")):
                if number % ranks.n_ranks() == ranks.rank():
                    store.read_files(rows)
                check_stop()


def check_recipes(recipe: Recipe | None, whose: str, splits: Splits) -> None:
    """See that database and queries are made as the features that a network was trained on.

    Args:
        recipe: of these; None: not known.
        whose: the recipe is, in words.
        splits: database and queries.

    Raises:
        BadInput: they are not, where both say how they were made.
    """
    for store in (splits.database, splits.query):
        if difference := other_recipe(store.recipe, recipe):
            raise BadInput(f"{store.paths[0]}: features of another recipe than {whose}: {difference}")


def run_test(
    system: System, settings: Settings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network, or several beside each other.

    Args:
        system: whose networks they are.
        settings: of the run.
        run: where to log.
        weights: checkpoints by the name of their row, the one to judge first; None as a checkpoint: a network
            as it is before training. None: what ``weight_path`` says.

    Returns:
        mAP@K of the first one by K.

    Raises:
        BadInput: a split, its labels or a checkpoint cannot be used, or they are of different recipes.
    """
    if run.is_tested():
        return {}
    device, config = open_device(settings), settings.config
    check_folder(expand(settings.result_dir))
    splits = open_splits(settings)
    if not weights and not (weights := run.started_with("weights")):
        found = find_weights(settings, system.tested, system.network.load_published)
        weights = {found.name: found}
    nets, origins, seeds, trained_with, differs = {}, {}, {}, {}, []
    for name, path in weights.items():
        if path:
            loaded = load_weights(Path(path), settings, system.tested, system.network)
            nets[name], origins[name], seeds[name] = loaded.net, loaded.origin, loaded.seed
            trained_with[name] = loaded.settings
            differs += [f"{path}: {difference}" for difference in loaded.differs]
            check_recipes(loaded.recipe, f"those that {path} was trained on", splits)
        else:
            net = system.fresh_network(settings, config.feature_size)
            nets[name], origins[name], seeds[name] = net, "initial weights", settings.seed
    run.start(**environment(device), weights={name: str(path) for name, path in weights.items() if path})
    for name, path in weights.items():
        run.say(f"{name}: {path} ({origins[name]})" if path else f"{name}: {origins[name]}")
    for note in differs + splits.notes:
        run.say(note)
    results = {}
    for name, net in nets.items():
        net.bfloat16 = settings.precision == "bfloat16"
        net.to(device).eval()
        results[name] = evaluate_network(net, splits, settings, name)
    first = next(iter(results))
    facts = {"seed": seeds[first], "weights": str(weights[first])}
    return report(system.name, run, splits, results, origins[first], trained_with.get(first), **facts)


def evaluate_network(net: nn.Module, splits: Splits, settings: Settings, name: str) -> Result:
    """Retrieval metrics of a network's codes, and these codes."""
    codes = codes_of(net, splits, settings, name)
    return Result(judge(codes, splits, settings, progress=True), codes)


def judge(
    codes: Codes, splits: Splits, settings: Settings, whole: bool = True, progress: bool = False
) -> Evaluation:
    """Retrieval metrics of codes, the queries divided among the ranks; arguments as of ``evaluate``."""
    pair, labels, own = (codes.query, codes.database), splits.labels, ranks.share(len(codes.query))
    exclude_self = settings.exclude_self
    return evaluate(*pair, *labels, settings.ks, exclude_self, whole, progress, own, ranks.collect)


def codes_of(net: nn.Module, splits: Splits, settings: Settings, name: str) -> Codes:
    """A network's codes of both splits.

    Raises:
        BadInput: a code is not finite, or none holds a -1.
    """
    device = next(net.parameters()).device

    def hashed(store: FeatureStore) -> Tensor:
        what = f"codes ({name})"
        return encode(store, lambda frames, _: net.hash(frames), device, settings, what, torch.int8)

    database = hashed(splits.database)
    query = database if splits.query is splits.database else hashed(splits.query)
    codes = Codes(database, query, digest(*net.state_dict().values()))
    if codes.zeros and not (query < 0).any() and not (database < 0).any():
        raise BadInput(f"{name}: its codes hold no -1 at all, only 0 and +1: the network has collapsed")
    return codes


def watch(net: nn.Module, splits: Splits, settings: Settings) -> dict[int, float]:
    """mAP@K of a network in training, by K; it is left in the mode it was in.

    Raises:
        BadInput: as of ``codes_of``.
    """
    was_training = net.training
    net.eval()
    codes = codes_of(net, splits, settings, "in training")
    net.train(was_training)
    return judge(codes, splits, settings, whole=False).map
