import numpy as np
import pytest
import torch
from synthetic import GOLDEN, together
from torch.utils._python_dispatch import TorchDispatchMode

import cluster
from cluster import kmeans, nearest, plusplus


def codes(n, bits, seed=0, prototypes=None):
    """Random codes, or noisy copies of prototypes."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], (n, bits))
    if prototypes:
        x = rng.choice([-1, 1], (prototypes, bits))[rng.integers(prototypes, size=n)]
        x = np.where(rng.random(x.shape) < 0.15, -x, x)
    return torch.tensor(x, dtype=torch.float32)


def slow_kmeans(x, centers, max_iter=300, tolerance=1e-4):
    """Lloyd's rounds, one point and one center at a time, in float64."""
    x, centers = x.double().numpy(), [c.copy() for c in centers.double().numpy()]

    def assign():
        distance = np.array([[((p - c) ** 2).sum() for c in centers] for p in x])
        # Equal up to rounding is equal: the lowest index takes it.
        return np.array([np.flatnonzero(row <= row.min() + 1e-9)[0] for row in distance]), distance

    before = None
    for n_iter in range(1, max_iter + 1):
        labels, distance = assign()
        if before is not None and (labels == before).all():
            break
        before, owner = labels, labels.copy()
        farthest = iter(np.argsort(-distance[np.arange(len(x)), labels], kind="stable"))
        for k in range(len(centers)):
            if not (labels == k).any():
                owner[next(p for p in farthest if (owner == owner[p]).sum() > 1)] = k
        means = [x[owner == k].mean(0) for k in range(len(centers))]
        shift = sum(((a - b) ** 2).sum() for a, b in zip(means, centers, strict=True))
        centers = means
        if shift <= tolerance * x.var(0).mean() or n_iter == max_iter:
            labels, _ = assign()
            break
    inertia = sum(((p - centers[label]) ** 2).sum() for p, label in zip(x, labels, strict=True))
    return np.array(centers), labels, inertia, n_iter


def assert_same(result, slow):
    centers, labels, inertia, n_iter = slow
    assert result.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(result.centers.numpy(), centers, atol=1e-6)
    assert result.inertia == pytest.approx(inertia, rel=1e-6, abs=1e-9)
    assert result.n_iter == n_iter


# ------------------------------------------------------------------------------------------------ golden


@pytest.fixture(scope="module")
def golden():
    return {
        key: torch.from_numpy(v)
        for key, v in np.load(GOLDEN / "wsch_tiny.npz").items()
        if key.startswith("kmeans/")
    }


@pytest.mark.parametrize("moved", [-1.0, 0.4, 1.0])
def test_published_rounds(golden, monkeypatch, moved):
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    result = kmeans(golden["kmeans/x"], 5, init=golden["kmeans/init"])
    assert result.labels.tolist() == golden["kmeans/labels"].tolist()
    torch.testing.assert_close(result.centers, golden["kmeans/centers"], rtol=1e-6, atol=1e-6)
    assert result.inertia == pytest.approx(float(golden["kmeans/inertia"]), rel=1e-6)


def test_published_seeding(golden):
    generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
    inertia = [kmeans(golden["kmeans/x"], 5, generator=generator).inertia for generator in generators]
    assert np.mean(inertia) == pytest.approx(float(golden["kmeans/plusplus_inertia"]), rel=0.02)


# ------------------------------------------------------------------------------------------------ rounds


def test_by_hand():
    x = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 4]])
    result = kmeans(x, 2, init=torch.tensor([[0.0, 1], [9, 1]]))
    assert result.centers.tolist() == [[0, 1], [10, 2]]
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert result.inertia == 1 + 1 + 4 + 4
    assert result.n_iter == 2


def test_a_tie_goes_to_the_lowest_center():
    x = torch.tensor([[1.0, 1], [-1, -1], [1, -1]])
    assert kmeans(x, 2, init=torch.tensor([[1.0, 1], [-1, -1]]), max_iter=1).labels.tolist() == [0, 1, 0]
    assert kmeans(x, 2, init=torch.tensor([[-1.0, -1], [1, 1]]), max_iter=1).labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("moved", [-1.0, 0.4, 1.0])
@pytest.mark.parametrize("prototypes", [None, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_against_a_slow_loop(monkeypatch, moved, prototypes, dtype):
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    x = codes(150, 16, prototypes=prototypes)
    assert_same(kmeans(x.to(dtype), 12, init=x[:12].to(dtype)), slow_kmeans(x, x[:12]))


@pytest.mark.parametrize("moved", [-1.0, 1.0])
def test_latent_features_against_a_slow_loop(monkeypatch, moved):
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(1))
    assert_same(kmeans(x, 10, init=x[:10]), slow_kmeans(x, x[:10]))


def test_sparing_the_centers_that_stayed_changes_nothing(monkeypatch):
    x = codes(4000, 64, prototypes=30)
    results = []
    for moved in (-1.0, 1.0):
        monkeypatch.setattr(cluster, "MOST_MOVED", moved)
        results.append(kmeans(x, 60, init=x[:60]))
    whole, spared = results
    assert torch.equal(whole.labels, spared.labels)
    assert torch.equal(whole.centers, spared.centers)
    assert (whole.inertia, whole.n_iter) == (spared.inertia, spared.n_iter)
    assert whole.n_iter > 5


def test_a_moved_center_wins_a_tie_by_its_index(monkeypatch):
    # Center 0 moves from 4 to 2 and is then as near to point 0 as center 1, which stays at -2.
    x = torch.tensor([[0.0], [-4], [1], [3]])
    for moved in (-1.0, 1.0):
        monkeypatch.setattr(cluster, "MOST_MOVED", moved)
        assert kmeans(x, 2, init=torch.tensor([[4.0], [-2]])).labels.tolist() == [0, 1, 0, 0]


def test_a_point_taken_by_a_moved_center_knows_its_new_distance(monkeypatch):
    monkeypatch.setattr(cluster, "MOST_MOVED", 1.0)
    lloyd = cluster._Lloyd(torch.zeros(1, 1), 3)
    for centers, label in (([10.0, 5, 20], 1), ([1.0, 5, 20], 0), ([1.0, 5, 3], 0)):
        lloyd.assign(torch.tensor(centers)[:, None])
        assert lloyd.labels.tolist() == [label]


@pytest.mark.parametrize("block", [7, 64, 5000])
def test_the_block_size_changes_nothing(monkeypatch, block):
    x = codes(1500, 32, prototypes=20)
    whole = kmeans(x, 25)
    distances, indices = nearest(x, whole.centers, 3)
    monkeypatch.setattr(cluster, "BLOCK", block)
    result = kmeans(x, 25)
    assert torch.equal(whole.labels, result.labels)
    assert torch.equal(whole.centers, result.centers)
    assert whole.inertia == pytest.approx(result.inertia, rel=1e-12)
    assert torch.equal(nearest(x, whole.centers, 3, block=block)[1], indices)
    assert torch.equal(nearest(x, whole.centers, 3, block=block)[0], distances)


def test_stops():
    x = torch.tensor([[0.0], [1], [2], [3], [10], [11], [12], [13], [4]])
    init = torch.tensor([[0.0], [1]])
    free = kmeans(x, 2, init=init)
    assert free.n_iter > 3
    for rounds in (1, 2):
        assert_same(kmeans(x, 2, init=init, max_iter=rounds), slow_kmeans(x, init, max_iter=rounds))
        assert kmeans(x, 2, init=init, max_iter=rounds).n_iter == rounds


def test_a_small_center_shift_stops_and_assigns_once_more():
    # Variance about 1e4: a shift of squared size up to about 1 ends the rounds.
    x = torch.tensor([[-100.0], [-100], [100], [100], [100], [100.9]])
    result = kmeans(x, 2, init=torch.tensor([[-100.0], [99.5]]))
    assert result.n_iter == 1
    assert result.centers[1].item() == pytest.approx(100.225)
    # Without the tolerance a second round finds that nothing changes.
    assert kmeans(x, 2, init=torch.tensor([[-100.0], [99.5]]), empty="drop").n_iter == 2
    assert_same(result, slow_kmeans(x, torch.tensor([[-100.0], [99.5]])))
    # Shifts beyond it go on: by far, and where the sample variance, 4/3 as large, would still allow them.
    assert kmeans(x, 2, init=torch.tensor([[-100.0], [98.2]])).n_iter == 2
    assert kmeans(x[:4], 2, init=torch.tensor([[-100.0], [101.1]])).n_iter == 2
    assert kmeans(x[:4], 2, init=torch.tensor([[-100.0], [100.9]])).n_iter == 1


# ---------------------------------------------------------------------------------------- empty clusters


def test_an_empty_cluster_takes_the_farthest_point():
    x = torch.tensor([[0.0], [1], [2], [9]])
    result = kmeans(x, 2, init=torch.tensor([[1.0], [100]]), max_iter=1)
    # Point 9 is farthest from center 1 and leaves its mean: (0 + 1 + 2) / 3.
    assert result.centers.tolist() == [[1], [9]]
    assert result.labels.tolist() == [0, 0, 0, 1]


def test_empty_clusters_take_the_farthest_points_in_order():
    x = torch.tensor([[0.0], [1], [2], [9], [-20]])
    result = kmeans(x, 3, init=torch.tensor([[1.0], [100], [200]]), max_iter=1)
    assert result.centers.tolist() == [[1], [-20], [9]]


def test_a_lone_point_stays():
    # Point 50 is farthest from its center but alone with it: taking it would only empty another cluster.
    x = torch.tensor([[0.0], [1], [5], [50]])
    result = kmeans(x, 3, init=torch.tensor([[0.0], [80], [1000]]), max_iter=1)
    assert result.centers.tolist() == [[0.5], [50], [5]]


@pytest.mark.parametrize("moved", [-1.0, 0.4, 1.0])
def test_empty_clusters_against_a_slow_loop(monkeypatch, moved):
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    x = codes(120, 8, prototypes=5)
    init = x[torch.randint(20, (15,), generator=torch.Generator().manual_seed(2))]  # with equal ones
    result = kmeans(x, 15, init=init)
    assert_same(result, slow_kmeans(x, init))
    assert result.labels.unique().numel() == 15


def test_fewer_distinct_points_than_centers():
    x = torch.ones(10, 4)
    for init in (None, x[:3]):
        result = kmeans(x, 3, init=init)
        assert result.inertia == 0
        assert torch.equal(result.centers, x[:3])


def test_dropping_empty_clusters():
    x = torch.tensor([[0.0], [1], [10], [11]])
    result = kmeans(x, 4, init=torch.tensor([[0.0], [500], [10], [500]]), empty="drop")
    assert result.centers.tolist() == [[0.5], [10.5]]
    assert result.labels.tolist() == [0, 0, 1, 1]


def test_a_cluster_emptied_by_the_final_assignment_is_dropped():
    x = torch.tensor([[3.0, 0], [6, 6], [4, 0], [4, 1], [0, 6], [4, 5], [3, 4], [5, 4]])
    result = kmeans(x, 4, init=x[:4], max_iter=1, empty="drop")
    assert len(result.centers) == 3
    assert result.labels.bincount().tolist() == [1, 5, 2]


def test_dropping_after_every_number_of_rounds():
    x = torch.tensor([[0.0], [4], [5], [6], [20]])
    init = torch.tensor([[0.0], [0.0], [5], [20]])
    for rounds in (1, 2, 16):
        result = kmeans(x, 4, init=init, max_iter=rounds, empty="drop")
        assert len(result.centers) == 3
        assert result.labels.bincount(minlength=3).min() > 0
        assert torch.equal(nearest(x, result.centers)[1][:, 0], result.labels)


@pytest.mark.parametrize("moved", [-1.0, 1.0])
def test_dropping_without_empty_clusters_is_lloyd(monkeypatch, moved):
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(4))
    result = kmeans(x, 20, init=x[:20], max_iter=16, empty="drop")
    assert_same(result, slow_kmeans(x, x[:20], max_iter=16, tolerance=-1))


def test_clusters_that_lose_their_points_are_dropped(monkeypatch):
    # Of equal points among the centers all but the first are empty from the start; others follow.
    x = codes(200, 6, seed=5)
    for moved in (-1.0, 1.0):
        monkeypatch.setattr(cluster, "MOST_MOVED", moved)
        result = kmeans(x, 60, init=x[:60], max_iter=16, empty="drop")
        assert len(result.centers) < 60
        assert result.labels.bincount().min() > 0
        assert result.labels.max() == len(result.centers) - 1
        assert torch.equal(nearest(x, result.centers)[1][:, 0], result.labels)


# ----------------------------------------------------------------------------------------------- seeding


def test_seeding_takes_distinct_points_and_repeats():
    x = codes(300, 16)
    first, again = (plusplus(x, 40, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(plusplus(x, 40), plusplus(x, 40))
    assert len(first.unique(dim=0)) == 40
    assert (nearest(first, x)[0] == 0).all()


def test_seeding_finds_every_far_cluster():
    x = torch.tensor([[0.0], [0.1], [100], [100.1], [200], [200.1]])
    for seed in range(20):
        centers = plusplus(x, 3, torch.Generator().manual_seed(seed))
        assert sorted((centers[:, 0] / 100).round().tolist()) == [0, 1, 2]


def test_seeding_keeps_the_best_of_its_draws():
    # Against the same draws with a slow loop.
    x, seed = codes(60, 8, prototypes=6), 3
    draws = torch.rand(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    points = x.double().numpy()
    chosen = [int(draws[0, 0] * 60)]
    for place in range(1, 7):
        closest = np.array([min(((p - points[c]) ** 2).sum() for c in chosen) for p in points])
        reach = closest.cumsum()
        tried = [int(np.searchsorted(reach, draw * reach[-1], side="right")) for draw in draws[place]]
        left = [np.minimum(closest, ((points - points[t]) ** 2).sum(1)).sum() for t in tried]
        chosen.append(tried[int(np.argmin(left))])
    assert torch.equal(plusplus(x, 7, torch.Generator().manual_seed(seed)), x[chosen])


def test_seeding_reads_nothing_off_the_device_for_a_center():
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    counts = []
    for n_clusters in (2, 20):
        with Reads() as reads:
            plusplus(codes(60, 8), n_clusters)
        counts.append(reads.count)
    assert counts[0] == counts[1]


# ----------------------------------------------------------------------------------------------- nearest


def test_nearest():
    x = torch.tensor([[0.0, 0], [3, 4]])
    centers = torch.tensor([[3.0, 4], [0, 1], [1, 0], [0, 0]])
    squared, index = nearest(x, centers, 3)
    assert index.tolist() == [[3, 1, 2], [0, 1, 2]]  # centers 1 and 2 tie for the first point
    assert squared.tolist() == [[0, 1, 1], [0, 18, 20]]


def test_nearest_against_all_distances():
    x, centers = codes(200, 10), codes(33, 10, seed=1)
    squared, index = nearest(x, centers, 5, block=64)
    distance = (x[:, None] - centers).square().sum(2)
    expected, order = distance.sort(dim=1, stable=True)
    assert torch.equal(index, order[:, :5])
    assert torch.equal(squared, expected[:, :5])


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 11}, "n_clusters must lie between 1 and the number of points: 11 of .10, 4."),
        ({"n_clusters": 0}, "n_clusters"),
        ({"x": torch.ones(10)}, "points: expected .number, width., found .10,."),
        ({"init": torch.ones(2, 4)}, "init: expected shape .3, 4., found .2, 4."),
        ({"init": torch.ones(3, 5)}, "init"),
        ({"max_iter": 0}, "max_iter"),
        ({"empty": "keep"}, "'keep'"),
    ],
)
def test_kmeans_errors(change, message):
    with pytest.raises(ValueError, match=message):
        kmeans(**({"x": torch.ones(10, 4), "n_clusters": 3} | change))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])  # 1e60 is not in float32
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: kmeans(x, 3, init=torch.ones(3, 4)), "points"),
        (lambda x: kmeans(torch.ones(10, 4), 6, init=x), "init"),
        (lambda x: plusplus(x, 3), "points"),
        (lambda x: nearest(x, torch.ones(3, 4)), "points"),
        (lambda x: nearest(torch.ones(3, 4), x), "centers"),
    ],
)
def test_points_without_a_distance_are_refused(function, name, value):
    x = torch.ones(6, 4)
    x[5, 1] = value
    with pytest.raises(ValueError, match=f"{name}: row 5 is not finite"):
        function(x)


def test_plusplus_errors():
    for n_clusters in (0, 4):
        with pytest.raises(ValueError, match=f"{n_clusters} of .3, 4."):
            plusplus(torch.ones(3, 4), n_clusters)


def test_nearest_errors():
    with pytest.raises(ValueError, match="width"):
        nearest(torch.ones(3, 4), torch.ones(2, 5))
    for k in (0, 3):
        with pytest.raises(ValueError, match="between 1 and the number of centers, 2"):
            nearest(torch.ones(3, 4), torch.ones(2, 4), k)


# ---------------------------------------------------------------------------------------- several processes


def divided(x, sizes, n_clusters, **options):
    """k-means of parts of these sizes; the result of each."""
    parts = x.split(sizes)

    def work(number, collect):
        def gather(rows, n_rows):
            found = torch.cat(collect(rows))
            assert len(found) == n_rows
            return found

        def total(tensor):
            return sum(collect(tensor.clone()))

        return kmeans(parts[number], n_clusters, total=total, gather=gather, **options)

    return together(len(sizes), work)


@pytest.mark.parametrize("sizes", [(600,), (300, 300), (200, 199, 201), (7, 0, 593)])
@pytest.mark.parametrize("moved", [-1.0, 0.4])
@pytest.mark.parametrize("start", ["distinct", "signs", "same", "far"])
@pytest.mark.parametrize("empty", ["restart", "drop"])
def test_divided_points_give_what_one_process_finds(monkeypatch, sizes, moved, start, empty):
    """From distinct centers, signs of means, equal ones and far ones: many are empty, and many points tie."""
    monkeypatch.setattr(cluster, "MOST_MOVED", moved)
    monkeypatch.setattr(cluster, "BLOCK", 64)
    x = codes(600, 16, prototypes=9)
    init = {
        "distinct": x[:40],
        "signs": kmeans(x, 40).centers.sign(),
        "same": x[:1].repeat(40, 1),
        "far": torch.cat((x[:3], torch.full((37, 16), 5.0))),
    }[start]
    one = kmeans(x, 40, init=init, empty=empty)
    parts = divided(x, sizes, 40, init=init, empty=empty)
    assert torch.equal(torch.cat([part.labels for part in parts]), one.labels)
    for part in parts:
        assert torch.equal(part.centers, one.centers)
        assert (part.inertia, part.n_iter) == (one.inertia, one.n_iter)


def test_divided_points_of_which_none_can_be_spared():
    x = torch.arange(6.0)[:, None].repeat(1, 2)
    one = kmeans(x, 6, init=torch.zeros(6, 2))
    for part in divided(x, (1, 5), 6, init=torch.zeros(6, 2)):
        assert torch.equal(part.centers, one.centers)


def test_centers_are_compared_with_all_points():
    assert len(divided(torch.eye(4), (2, 2), 3, init=torch.eye(4)[:3])) == 2
    with pytest.raises(ValueError, match="5 of .4, 4."):
        divided(torch.eye(4), (2, 2), 5, init=torch.ones(5, 4))


def test_divided_points_stop_at_the_variance_of_all():
    x = codes(600, 16, prototypes=9)
    parts = x.split([1, 0, 599])
    found = together(
        3, lambda number, collect: cluster._variance(parts[number], x[0], 600, lambda own: sum(collect(own)))
    )
    assert found == [cluster._variance(x, x[0], 600, cluster.unchanged)] * 3
    assert found[0] == pytest.approx(float(x.var(0, correction=0).mean()), rel=1e-6)
