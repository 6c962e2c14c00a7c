import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from synthetic import GOLDEN, together

from formats import hamming
from formats.bits import count_distinct, pack, words
from metrics import ByRadius, binarize, evaluate, hamming_distance, mean_average_precision, tie_averaged_map


def random_case(queries, videos, bits, classes, seed=0, zeros=False):
    """Random codes (few bits: many ties) and multi-hot labels, some rows without any label."""
    rng = np.random.default_rng(seed)
    values = [-1, 0, 1] if zeros else [-1, 1]
    codes = [torch.tensor(rng.choice(values, (n, bits)), dtype=torch.float32) for n in (queries, videos)]
    labels = [torch.tensor(rng.random((n, classes)) < 1.5 / classes) for n in (queries, videos)]
    return *codes, *labels


def slow_ranking(query, database):
    """Database indices by (distance, index), and the distances in that order."""
    distance = [sum(1 - a * b for a, b in zip(query, code, strict=True)) for code in database.tolist()]
    order = sorted(range(len(distance)), key=lambda i: (distance[i], i))
    return order, [distance[i] for i in order]


def slow_precision_sums(relevant, k):
    """AP@K from the relevance in rank order, straight from its formula."""
    return sum(relevant[i] * sum(relevant[: i + 1]) / (i + 1) for i in range(k)) / k


def slow_whole(relevant, distance):
    """Expected AP of a whole ranking: the mean over its places of what may stand there, by tie group."""
    total, begin = 0.0, 0
    while begin < len(distance):
        end = begin + distance.count(distance[begin])
        n, r, before = end - begin, sum(relevant[begin:end]), sum(relevant[:begin])
        for j in range(n):  # a relevant one stands here with r / n, j (r - 1) / (n - 1) others in front
            others = j * (r - 1) / (n - 1) if n > 1 else 0
            total += r / n * (before + 1 + others) / (begin + j + 1)
        begin = end
    return total / max(sum(relevant), 1)


def slow_evaluate(query, database, query_labels, database_labels, k, exclude_self=False):
    """Every metric by its name, at one cut, each straight from its definition."""
    rows, bits = [], query.shape[1]
    pairs = np.zeros((2, bits + 1), int)
    for number, (code, label) in enumerate(zip(query.tolist(), query_labels, strict=True)):
        order, twice = slow_ranking(code, database)
        ranked = [each for each in zip(order, twice, strict=True) if not exclude_self or each[0] != number]
        distance = [double / 2 for _, double in ranked]
        relevant = [bool((label & database_labels[i]).any()) for i, _ in ranked]
        found, total = sum(relevant[:k]), sum(relevant)
        summed = slow_precision_sums(relevant, k) * k
        row = {
            "map": summed / k,
            "map_relevant": summed / min(k, total) if total else 0.0,
            "map_retrieved": summed / found if found else 0.0,
            "precision": found / k,
            "recall": found / total if total else 0.0,
            "ceiling": slow_precision_sums(sorted(relevant, reverse=True), k),
            "map_whole": slow_whole(relevant, distance),
        }
        for r in range(bits + 1):
            within = [is_relevant for is_relevant, d in zip(relevant, distance, strict=True) if d <= r]
            row["precision", r] = sum(within) / len(within) if within else 0.0
            row["recall", r] = sum(within) / total if total else 0.0
            new = [rel for rel, d in zip(relevant, distance, strict=True) if r - 1 < d <= r]
            pairs[:, r] += len(new), sum(new)
        rows.append(row)
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    by_radius = [[means.pop((name, r)) for r in range(bits + 1)] for name in ("precision", "recall")]
    return means, ByRadius(*by_radius, *pairs.tolist())


# ------------------------------------------------------------------------------------------------ codes


def test_binarize_rounds_half_to_even():
    v = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 7.0])
    assert binarize(v).tolist() == [-1, -1, -1, -1, 1, 1, 1]
    assert binarize(v.double()).dtype == torch.float64


def test_binarize_passes_the_gradient_between_its_ends():
    below, above = np.nextafter(np.float32(-1), np.float32(0)), np.nextafter(np.float32(1), np.float32(2))
    v = torch.tensor([-2, -1, below, 0, 1, above, 2], dtype=torch.float32, requires_grad=True)
    binarize(v).backward(torch.arange(1.0, 8.0))
    assert v.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


def test_hamming_distance_counts_half_for_a_zero():
    query = torch.tensor([[1, 1, -1, -1], [1, 0, 0, -1]])
    database = torch.tensor([[1, 1, -1, -1], [-1, 1, 1, 0]])
    assert hamming_distance(query, database).tolist() == [[0, 2.5], [1, 2.5]]
    assert hamming_distance(query.numpy(), database.numpy()).dtype == torch.float32


def test_hamming_distance_refuses_other_lengths():
    with pytest.raises(ValueError, match="8 bits, database codes 9"):
        hamming_distance(torch.ones(2, 8), torch.ones(3, 9))


# ---------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("case", [0, 1, 2])
def test_published_values(case):
    golden = {
        key.split("/")[1]: value
        for key, value in np.load(GOLDEN / "map_at_k.npz").items()
        if key[4] == str(case)
    }
    arguments = [golden[name] for name in ("query", "db", "query_labels", "db_labels", "k")]
    expected = dict(zip(golden["k"].tolist(), golden["map"].tolist(), strict=True))  # five decimals
    assert mean_average_precision(*arguments) == pytest.approx(expected, abs=6e-6)
    # No two distances tie, so the expectation is the value itself.
    assert tie_averaged_map(*arguments) == pytest.approx(expected, abs=6e-6)


def test_by_hand():
    query = torch.tensor([[1, 1, 1, 1]])
    # Distances 1, 0, 1, 4: ranked 1, 0, 2, 3.
    database = torch.tensor([[1, 1, 1, -1], [1, 1, 1, 1], [-1, 1, 1, 1], [-1, -1, -1, -1]])
    labels = torch.tensor([[0, 1], [1, 0], [1, 1], [1, 0]])
    result = evaluate(query, database, torch.tensor([[1, 0]]), labels, [1, 2, 3, 4])
    expected = {1: 1, 2: 1 / 2, 3: (1 + 2 / 3) / 3, 4: (1 + 2 / 3 + 3 / 4) / 4}
    assert result.map == pytest.approx(expected)
    # Videos 0 and 2 tie on ranks 2 and 3, one of them relevant: on either with probability 1/2.
    tied = {1: 1, 2: (1 + 1 / 2) / 2, 3: (1 + (1 + 2 / 3) / 2) / 3, 4: (1 + (1 + 2 / 3) / 2 + 3 / 4) / 4}
    assert result.tie_averaged_map == pytest.approx(tied)
    assert result.precision == pytest.approx({1: 1, 2: 1 / 2, 3: 2 / 3, 4: 3 / 4})
    assert result.recall == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 2 / 3, 4: 1})
    # Any one of four first: 3/4.  Two: (3/4 + 3/4 (1 + 2/3) / 2) / 2.
    assert result.chance[1] == pytest.approx(3 / 4)
    assert result.chance[2] == pytest.approx((3 / 4 + 3 / 4 * (1 + 2 / 3) / 2) / 2)


def test_the_sum_is_divided_by_k_not_by_the_relevant():
    codes = torch.tensor([[1, 1], [1, -1], [-1, -1]])
    assert mean_average_precision(codes[:1], codes, [[1]], [[1], [0], [0]], [3]) == pytest.approx({3: 1 / 3})


def check(result, case, k, exclude_self=False):
    """Every metric of a result against the slow loop."""
    means, by_radius = slow_evaluate(*case, k, exclude_self)
    assert result.map_whole == pytest.approx(means.pop("map_whole"), rel=1e-11)
    for name, value in means.items():
        assert getattr(result, name)[k] == pytest.approx(value, rel=1e-13), name
    assert result.by_radius.precision == pytest.approx(by_radius.precision, rel=1e-13)
    assert result.by_radius.recall == pytest.approx(by_radius.recall, rel=1e-13)
    assert result.by_radius.pairs == by_radius.pairs
    assert result.by_radius.relevant_pairs == by_radius.relevant_pairs
    assert result.precision_radius_2 == result.by_radius.precision[2]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("videos", "bits"), [(7, 3), (90, 4), (300, 12), (260, 130)])
def test_against_a_slow_loop(videos, bits, zeros):
    case = random_case(6, videos, bits, 5, seed=videos, zeros=zeros)
    ks = [1, 5, 7] if videos < 50 else [7, 50, 1, videos]
    result = evaluate(*case, ks)
    for k in ks:
        check(result, case, k)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("videos", "bits"), [(2, 2), (7, 3), (60, 4), (40, 130)])
def test_each_video_left_out_of_its_own_ranking(videos, bits, zeros):
    _, codes, _, labels = random_case(1, videos, bits, 5, seed=bits, zeros=zeros)
    codes[0, :2] = torch.tensor([1, -1])
    assert videos == 2 or not labels.any(1).all()
    case = codes, codes, labels, labels
    ks = [1, videos // 2, videos - 1]
    result = evaluate(*case, ks, exclude_self=True)
    for k in ks:
        check(result, case, k, exclude_self=True)
        assert mean_average_precision(*case, [k], exclude_self=True)[k] == result.map[k]
    assert sum(result.by_radius.pairs) == videos * (videos - 1)


def test_what_counts_apart_by_hand():
    # From the query: distances 0, 2, 2, 3, 4; a zero against anything is half a bit.
    query = torch.tensor([[1, 1, 1, 1]])
    database = torch.tensor([[1] * 4, [-1, -1, 1, 1], [1, 1, -1, -1], [-1, -1, 0, 0], [-1] * 4])
    labels = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [1, 1]])
    result = evaluate(query, database, torch.tensor([[1, 0]]), labels, [1, 2, 4])
    # In the order of the database: not, relevant, not, relevant, relevant; 3 of them.
    assert result.map_relevant == pytest.approx({1: 0, 2: (1 / 2) / 2, 4: (1 / 2 + 2 / 4) / 3})
    assert result.map_retrieved == pytest.approx({1: 0, 2: 1 / 2, 4: (1 / 2 + 2 / 4) / 2})
    assert result.ceiling == {1: 1, 2: 1, 4: 3 / 4}
    # The two at distance 2 in either order: the first relevant one on place 2 or 3.
    assert result.map_whole == pytest.approx(((1 / 2 + 1 / 3) / 2 + 2 / 4 + 3 / 5) / 3)
    assert result.by_radius.pairs == [1, 0, 2, 1, 1]
    assert result.by_radius.relevant_pairs == [0, 0, 1, 1, 1]
    assert result.by_radius.precision == pytest.approx([0, 0, 1 / 3, 2 / 4, 3 / 5])
    assert result.by_radius.recall == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert result.precision_radius_2 == pytest.approx(1 / 3)


def test_distances_of_half_bits_belong_to_the_next_radius():
    query, database = torch.tensor([[1, 1, -1]]), torch.tensor([[0, 1, -1], [1, 0, 0], [0, -1, -1]])
    result = evaluate(query, database, [[1]], [[1], [1], [0]], [1])
    assert result.by_radius.pairs == [0, 2, 1, 0]  # 1/2, 1, 3/2
    assert result.by_radius.precision == pytest.approx([0, 1, 2 / 3, 2 / 3])


def test_radius_2_of_a_code_of_one_bit_is_all_of_it():
    result = evaluate(torch.tensor([[1]]), torch.tensor([[1], [-1]]), [[1]], [[1], [0]], [1])
    assert result.by_radius.precision == [1, 1 / 2]
    assert result.precision_radius_2 == 1 / 2


@pytest.mark.parametrize("bits", [6, 16, 64])
def test_ties_rank_as_in_a_stable_full_sort_to_the_last_digit(bits):
    query, database, query_labels, database_labels = random_case(40, 3000, bits, 6, zeros=True)
    order = hamming_distance(query, database).sort(dim=1, stable=True).indices
    relevant = (query_labels.float() @ database_labels.float().T > 0).gather(1, order).numpy()
    ranks = np.arange(1, 3001)
    ap = np.cumsum(relevant * np.cumsum(relevant, 1) / ranks, 1) / ranks
    for k in (1, 10, 93, 100):  # with 94 groups, shallower and deeper than their number
        expected = {k: math.fsum(ap[:, k - 1]) / 40}
        assert mean_average_precision(query, database, query_labels, database_labels, [k]) == expected


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_tie_average_is_the_mean_over_all_orders(seed, zeros):
    query, database, query_labels, database_labels = random_case(3, 7, 2, 2, seed=seed, zeros=zeros)
    ks = [1, 2, 3, 5, 7]
    expected, whole = np.zeros(len(ks)), 0.0
    for code, label in zip(query.tolist(), query_labels, strict=True):
        order, distance = slow_ranking(code, database)
        ranked = list(zip(order, distance, strict=True))
        runs = [[i for i, d in ranked if d == level] for level in sorted(set(distance))]
        orders = [sum(parts, ()) for parts in itertools.product(*map(itertools.permutations, runs))]
        for each in orders:
            relevant = [bool((label & database_labels[i]).any()) for i in each]
            expected += [slow_precision_sums(relevant, k) / len(orders) / len(query) for k in ks]
            share = 7 / max(sum(relevant), 1) / len(orders) / len(query)
            whole += slow_precision_sums(relevant, 7) * share
    result = tie_averaged_map(query, database, query_labels, database_labels, ks)
    assert list(result.values()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert evaluate(query, database, query_labels, database_labels, [1]).map_whole == pytest.approx(whole)
    # The last group goes on beyond the deepest K.
    for k in ks:
        alone = tie_averaged_map(query, database, query_labels, database_labels, [k])
        assert alone[k] == pytest.approx(result[k], rel=1e-12)


def test_chance_is_the_mean_over_all_rankings():
    query, database, query_labels, database_labels = random_case(4, 6, 3, 2, seed=3)
    result = evaluate(query, database, query_labels, database_labels, [1, 3, 6])
    for k, value in result.chance.items():
        total = 0.0
        for label in query_labels:
            relevant = [bool((label & other).any()) for other in database_labels]
            orders = list(itertools.permutations(relevant))
            total += sum(slow_precision_sums(order, k) for order in orders) / len(orders)
        assert value == pytest.approx(total / 4, rel=1e-12)


def test_equal_codes_leave_nothing_but_chance():
    query, database, query_labels, database_labels = random_case(9, 400, 8, 5)
    query, database = torch.ones_like(query), torch.ones_like(database)
    result = evaluate(query, database, query_labels, database_labels, [1, 10, 400])
    assert result.tie_averaged_map == pytest.approx(result.chance, rel=1e-12)
    check(result, (query, database, query_labels, database_labels), 10)


def test_a_query_without_relevant_videos_counts_zero():
    codes = torch.tensor([[1, 1], [1, -1]])
    labels = torch.tensor([[1, 0, 0], [1, 0, 0]])
    one = evaluate(codes[:1], codes, labels[:1], labels, [1, 2])
    both = evaluate(codes, codes, torch.tensor([[1, 0, 0], [0, 1, 0]]), labels, [1, 2])
    for name in ("map", "tie_averaged_map", "map_relevant", "map_retrieved", "precision", "recall",
                 "ceiling", "chance"):  # fmt: skip
        assert getattr(both, name) == pytest.approx({k: v / 2 for k, v in getattr(one, name).items()})
    assert both.map_whole == pytest.approx(one.map_whole / 2)
    assert both.by_radius.precision == pytest.approx([value / 2 for value in one.by_radius.precision])


def test_blocks_change_nothing(monkeypatch):
    case = random_case(70, 700, 6, 4, zeros=True)
    whole = evaluate(*case, [3, 10])
    monkeypatch.setattr(hamming, "DISTANCES", 700)
    monkeypatch.setattr(hamming, "QUERIES", 9)
    monkeypatch.setattr("formats.bits.COLUMNS", 33)
    monkeypatch.setattr(hamming, "CANDIDATES", 100)
    assert evaluate(*case, [3, 10]) == whole
    monkeypatch.setattr(hamming, "GROUP", 5)
    assert evaluate(*case, [3, 10]) == whole


def test_the_tie_group_is_counted_beyond_the_ranks():
    # One relevant video among 500 at one distance: on rank 1 with probability 1/500.
    codes, labels = torch.ones(500, 8), torch.zeros(500, 2)
    labels[:, 1], labels[321] = 1, torch.tensor([1, 0])
    result = tie_averaged_map(codes[:1], codes, torch.tensor([[1, 0]]), labels, [1, 3])
    assert result == pytest.approx({1: 1 / 500, 3: (1 + 1 / 2 + 1 / 3) / 500 / 3})


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [5, 64, 127, 128, 255, 256, 300])
def test_counted_bits_rank_and_count_as_products(bits, zeros):
    # A GPU takes products. Distances pass a byte at 256 bits, with zeros at 128.
    query, database, *_ = random_case(20, 600, bits, 4, zeros=zeros)
    query[0], database[:2] = 1, torch.tensor([[1], [-1]])
    rng = np.random.default_rng(bits)
    relevant = [np.flatnonzero(rng.random(600) < 0.1) for _ in range(26)]
    packed, products = words(query, database), (-query.T, database.T)
    depth, exclude_self = 599 if bits == 300 else 20, bits != 64
    options = {"first": 6, "bits": bits, "depth": depth, "exclude_self": exclude_self}
    level = hamming.INDEX_BITS, hamming.INDEX_BITS + hamming.DISTANCE_BITS
    for marked in (None, lambda number: relevant[number]):
        counted, counts = hamming._packed_search(*packed, **options, marked=marked)
        product, half_counts = hamming._product_search(*products, **options, marked=marked)
        if not zeros:  # whole bits, not half ones
            counted += counted >> level[0] << level[0]
            product += product >> level[1] << level[1]
        assert torch.equal(counted, product)
    if not zeros:
        assert not half_counts[..., 1::2].any()
        half_counts = half_counts[..., ::2]
    assert torch.equal(counts, half_counts)
    assert counts[:, 0].sum(1).tolist() == [600 - exclude_self] * 20


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(monkeypatch, threads):
    case = random_case(70, 300, 16, 4)
    whole = evaluate(*case, [3, 10])
    monkeypatch.setattr(hamming, "MOST_QUERIES", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert evaluate(*case, [3, 10]) == whole


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [3, 8, 64, 130])
def test_distinct_codes(bits, zeros):
    _, codes, *_ = random_case(1, 300, bits, 2, zeros=zeros)
    codes = torch.cat((codes, codes[50:150]))
    assert count_distinct(codes) == len({tuple(code) for code in codes.tolist()})


def test_any_input_type():
    query, database, query_labels, database_labels = random_case(8, 60, 8, 3)
    expected = evaluate(query, database, query_labels, database_labels, [5])
    types = ((torch.int8, torch.float32), (torch.float64, torch.uint8), (torch.bfloat16, torch.int32))
    for codes, labels in types:
        converted = query.to(codes), database.to(codes), query_labels.to(labels), database_labels.to(labels)
        assert evaluate(*converted, [5]) == expected
    arrays = [a.numpy() for a in (query, database, query_labels, database_labels)]
    assert evaluate(*arrays, (5,)) == expected


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda labels: np.broadcast_to(labels, labels.shape),  # read-only
        lambda labels: np.repeat(labels, 2, axis=1)[:, ::2],
        lambda labels: labels[::-1].copy()[::-1],
        lambda labels: labels.astype(">f8"),
        lambda labels: labels.astype(np.uint16),
        lambda labels: torch.tensor(labels).T.contiguous().T,
        csc_matrix,
    ],
)
def test_labels_in_any_form(form, recwarn):
    *codes, query_labels, database_labels = random_case(8, 60, 8, 9)
    expected = evaluate(*codes, query_labels, database_labels, [5])
    labels = [form(each.numpy()) for each in (query_labels, database_labels)]
    assert evaluate(*codes, *labels, [5]) == expected
    assert not recwarn


def test_bits_are_no_codes():
    bits = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]])
    for codes in (bits, bits.float(), bits.bool(), bits.numpy().astype(np.uint8), torch.ones(2, 4).bool()):
        for function in (pack, lambda each: hamming_distance(each, each)):
            with pytest.raises(ValueError, match=r"pass 2 \* bits - 1"):
                function(codes)
    # A query may hold no -1 by chance: the database tells.
    assert hamming_distance(bits[:1], 2 * bits - 1).tolist() == [[1, 1]]


def test_ks_in_any_order():
    case = random_case(5, 50, 8, 3)
    assert list(evaluate(*case, [20, 5]).map) == [20, 5]
    assert evaluate(*case, [20, 5]).map[5] == evaluate(*case, [5]).map[5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"database": torch.ones(9, 5)}, "code lengths differ"),
        ({"database": torch.ones(9, 4) / 2}, "-1, 0 and"),
        ({"database": torch.full((9, 4), torch.nan)}, "-1, 0 and"),
        ({"query": torch.zeros(2, 4)}, "pass 2 . bits - 1"),
        ({"database": torch.ones(9, 4).bool()}, "pass 2 . bits - 1"),
        ({"query": torch.ones(0, 4)}, "query codes: expected a non-empty"),
        ({"database": torch.ones(0, 4)}, "database codes: expected a non-empty"),
        ({"query": torch.ones(4)}, "query codes"),
        ({"query_labels": torch.ones(3, 3)}, "query labels: expected .2, num_class., found .3, 3."),
        ({"database_labels": torch.ones(8, 3)}, "database labels: expected .9, num_class."),
        ({"query_labels": torch.ones(2)}, "query labels"),
        ({"query_labels": torch.ones(2, 4)}, "class counts differ: query has 4, database 3"),
        ({"query_labels": -torch.ones(2, 3)}, "query labels: .* found -1.0: pass labels > 0 for"),
        ({"database_labels": torch.arange(9)[:, None]}, "database labels: .* found 2: .*class indices"),
        ({"query_labels": torch.full((2, 3), torch.nan)}, "query labels: .* found nan"),
        ({"ks": [5.7]}, "whole numbers between 1 and the database size 9, found .5.7."),
        ({"ks": [math.nan]}, "whole numbers"),
        ({"ks": [5, 10]}, "between 1 and the database size 9"),
        ({"ks": [0, 5]}, "between 1 and the database size 9"),
        ({"ks": []}, "no K"),
    ],
)
@pytest.mark.parametrize("function", [evaluate, mean_average_precision, tie_averaged_map])
def test_errors(function, change, message):
    arguments = {
        "query": torch.ones(2, 4),
        "database": torch.ones(9, 4),
        "query_labels": torch.ones(2, 3),
        "database_labels": torch.ones(9, 3),
        "ks": [5],
    }
    with pytest.raises(ValueError, match=message):
        function(**(arguments | change))


def test_only_the_database_itself_can_be_left_out():
    query, database, *labels = random_case(5, 6, 4, 2)
    with pytest.raises(ValueError, match="exclude_self: 5 queries cannot be the 6 database videos"):
        evaluate(query, database, *labels, [1], exclude_self=True)
    case = database, database, labels[1], labels[1]
    with pytest.raises(ValueError, match="between 1 and the database size 5, found .6."):
        evaluate(*case, [6], exclude_self=True)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_divided_queries_give_the_same_numbers(exclude_self, whole):
    rng = np.random.default_rng(0)
    database = torch.from_numpy(rng.integers(-1, 2, (150, 20)))
    labels = torch.from_numpy(rng.random((150, 6)) < 0.3)
    arguments = database, database, labels, labels, [7, 1, 100], exclude_self, whole
    expected = evaluate(*arguments)
    for bounds in ([0, 75, 150], [0, 1, 1, 20, 150]):
        parts = [slice(*each) for each in itertools.pairwise(bounds)]

        def work(number, collect, parts=parts):
            return evaluate(*arguments, only=parts[number], collect=collect)

        assert together(len(parts), work) == [expected] * len(parts)
