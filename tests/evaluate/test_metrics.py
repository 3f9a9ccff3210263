"""Every metric against a value worked out by hand or by another library."""

from typing import Any

import numpy as np
import pytest
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]

from instantstyle.evaluate import metrics
from instantstyle.evaluate.metrics import (
    background_color,
    background_correlation,
    bootstrap,
    copies,
    correlation,
    counterfactual_leakage,
    four_way_outcomes,
    leakage_rate,
    normalized_distance,
    normalized_distances,
    pixel_descriptor,
    psnr,
    variance_shares,
    wilson,
)

SIDE = 64
stats: Any = scipy.stats


def _flat(colour: tuple[int, int, int], thing: tuple[int, int, int] = (128, 128, 128)) -> np.ndarray:
    pixels = np.full((SIDE, SIDE, 3), colour, np.uint8)
    pixels[16:48, 16:48] = thing
    return pixels


def test_each_outcome_of_the_four_way_test() -> None:
    """Four pictures, each nearest to another of the four truths, against two other styles."""
    near, far = 0.0, 1.0
    right = np.array([near, far, far, far])
    missed = np.array([[far, far], [near, near], [far, far], [far, far]])
    copied = np.array([far, far, near, far])
    both = np.array([[far, far], [far, far], [far, far], [near, near]])
    assert four_way_outcomes(right, missed, copied, both).tolist() == np.eye(4).tolist()


def test_other_styles_are_averaged_and_ties_win_nothing() -> None:
    shares = four_way_outcomes(np.array([0.5]), np.array([[0.4, 0.6]]), np.array([0.9]), np.array([[0.9, 0.9]]))
    assert shares.tolist() == [[0.5, 0.5, 0, 0]]
    one = np.ones(1)
    assert four_way_outcomes(one, one[:, None], one, one[:, None])[0, 0] == 0, "equally far from all is not right"


def test_guessing_has_each_outcome_a_quarter_of_the_time() -> None:
    rng = np.random.default_rng(0)
    n, styles = 4000, 1
    shares = four_way_outcomes(rng.random(n), rng.random((n, styles)), rng.random(n), rng.random((n, styles)))
    assert shares.mean(0) == pytest.approx([0.25] * 4, abs=0.03)
    assert shares.sum(1) == pytest.approx(np.ones(n))


def test_normalized_distance_is_0_at_the_oracle_and_1_without_a_reference() -> None:
    oracle, without = np.array([0.1, 0.3]), np.array([1.1, 0.9])
    assert normalized_distance(oracle, oracle, without) == pytest.approx(0)
    assert normalized_distance(without, oracle, without) == pytest.approx(1)
    assert normalized_distance((oracle + without) / 2, oracle, without) == pytest.approx(0.5)
    assert normalized_distance(without + 0.8, oracle, without) == pytest.approx(2), "farther than without a reference"
    assert np.isnan(normalized_distance(without, oracle, oracle)), "where a reference can gain nothing, nothing is said"


def test_linearised_distances_have_the_mean_and_spread_of_the_ratio() -> None:
    rng = np.random.default_rng(4)
    oracle = rng.random(60)
    without = oracle + 1 + rng.random(60)
    drawn = oracle + 0.4 * (without - oracle) + 0.2 * rng.standard_normal(60)
    whole, parts = normalized_distance(drawn, oracle, without), normalized_distances(drawn, oracle, without)
    assert parts.mean() == pytest.approx(whole)
    # The jackknife of the ratio itself knows nothing of its being made linear.
    left_out = [normalized_distance(*(np.delete(x, i) for x in (drawn, oracle, without))) for i in range(60)]
    jackknife = np.sqrt(59 * np.var(left_out))
    assert parts.std() / 60**0.5 == pytest.approx(jackknife, rel=0.05)
    assert normalized_distances(without, oracle, without) == pytest.approx(1)
    assert normalized_distances(oracle, oracle, without) == pytest.approx(0, abs=1e-12)
    assert np.isnan(normalized_distances(without, oracle, oracle)).all()


def test_leakage_rate_by_hand() -> None:
    """Three references show 0, 1, 2 and the targets are 3, 4, 5; the first picture looks like its reference."""
    scores = np.zeros((3, 6))
    scores[0, 0] = scores[1, 4] = scores[2, 0] = 9
    excess = leakage_rate(scores, np.array([0, 1, 2]), np.array([3, 4, 5]), ["near"] * 3)
    # x0 hits its own reference and none of the others; x1 hits none; x2 hits the reference of x0, one of two others.
    assert excess.tolist() == [1.0, 0.0, -0.5]


def test_a_constant_classifier_finds_no_leakage() -> None:
    rng = np.random.default_rng(1)
    shown = rng.integers(10, size=200)
    scores = np.zeros((200, 12))
    scores[:, 3] = 1
    assert np.nanmean(leakage_rate(scores, shown, np.full(200, 11), ["all"] * 200)) == pytest.approx(0, abs=0.01)
    assert np.nanmean(leakage_rate(np.eye(12)[shown], shown, np.full(200, 11), ["all"] * 200)) == pytest.approx(1)


def test_leakage_is_compared_within_its_stratum() -> None:
    scores = np.eye(3)
    excess = leakage_rate(scores, np.array([0, 1, 2]), np.array([9, 9, 9]), ["near", "near", "far"])
    assert excess[:2].tolist() == [1.0, 1.0]
    assert np.isnan(excess[2]), "one reference has nobody to be compared with"


def test_counterfactual_leakage_is_the_difference_in_nats() -> None:
    assert counterfactual_leakage(np.log(np.array([0.8])), np.log(np.array([0.1]))) == pytest.approx(np.log(8))


def test_variance_shares_of_an_additive_block() -> None:
    """y = 2 a + b over a, b in {-1, 1}: variances 4 and 1 of 5; the third factor does nothing."""
    a, b, c = np.meshgrid([-1.0, 1], [-1.0, 1], [0.0, 0, 0], indexing="ij")
    shares = variance_shares((2 * a + b + 0 * c)[..., None], ["words", "style", "shown"])
    assert shares == pytest.approx({"words": 0.8, "style": 0.2, "shown": 0.0, "interaction": 0.0})
    assert variance_shares((a * b)[..., None], ["words", "style", "shown"])["interaction"] == pytest.approx(1)
    assert set(variance_shares(np.ones((2, 2, 1)), ["words", "style"]).values()) == {0.0}


def test_copies_are_nearer_to_the_reference_than_to_all_of_the_prompted() -> None:
    assert copies(np.array([0.1, 0.5]), np.array([[0.2, 0.9], [0.4, 0.9]])).tolist() == [True, False]


def test_correlation_is_numpys_and_0_where_nothing_varies() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert correlation(a, b) == pytest.approx(float(np.corrcoef(a, b)[0, 1]))
    assert correlation(a, np.full(9, 3.0)) == 0


def test_background_correlation() -> None:
    colours = ((230, 40, 40), (30, 60, 200), (240, 240, 90), (20, 20, 20))
    references = np.stack([_flat(c) for c in colours])
    assert background_correlation(references, references) == pytest.approx((1, 1))
    assert background_correlation(np.stack([_flat((9, 9, 9))] * 4), references)[0] == 0
    assert background_color(_flat((255, 0, 0))).tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.7)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [  # published Lab values of sRGB's corners under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_the_background_is_the_colour_of_the_border(
    colour: tuple[int, int, int], lab: tuple[float, float, float]
) -> None:
    assert background_color(_flat(colour)).tolist() == pytest.approx(lab, abs=0.7)


@pytest.mark.parametrize("turns", range(4))
def test_all_four_edges_count(turns: int) -> None:
    """One side of the image and three quarters of its neighbours are red: most of the border, by a little.

    Of four edges of 128 pixels each, that side is 128 and its neighbours have 96 each, so 320 of 512 are red; without
    that side's own edge 192 of 384 would be, and the median no longer red.
    """
    pixels = np.full((SIDE, SIDE, 3), (0, 0, 255), np.uint8)
    pixels[:, SIDE // 4 + 1 :] = (255, 0, 0)
    assert background_color(np.rot90(pixels, turns)).tolist() == pytest.approx((53.24, 80.09, 67.20), abs=0.7)


def test_the_pixel_descriptor_sees_colour_and_line() -> None:
    plain, other, lined = _flat((200, 200, 200)), _flat((200, 40, 40)), _flat((200, 200, 200))
    lined[::4] = 0
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(plain)) == 0
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(other)) > 0.5
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(lined)) > 0.5


def test_cosine_distance_is_one_minus_cosine() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert metrics.cosine_distance(a, np.array([1.0, 0.0])).tolist() == pytest.approx([0, 1, 2])


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black + 255, black) == pytest.approx(0)
    assert psnr(black + 51, black) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == float("inf")


def test_clusters_widen_the_interval() -> None:
    """Forty values in two styles that differ are two, not forty."""
    values = np.repeat([0.0, 1.0], 20)
    alone = bootstrap(values, {"question": list(range(40))})
    by_style = bootstrap(values, {"style": ["a"] * 20 + ["b"] * 20}, bounds=(0.0, 1.0))
    assert alone.mean == by_style.mean == 0.5
    # A mean of 40 coin tosses: 1.96 * 0.5 / sqrt(40) = 0.155 each way.
    assert (alone.low, alone.high) == pytest.approx((0.345, 0.655), abs=0.04)
    assert (by_style.low, by_style.high) == (0, 1)
    assert np.isnan(bootstrap(np.array([np.nan]), {"a": [1]}).mean)


def test_variance_shared_by_two_kinds_of_cluster_is_counted_once() -> None:
    """Every image in a cluster of its own in both kinds: the width is that of independent images."""
    values, own = np.random.default_rng(3).normal(size=40), list(range(40))
    crossed, alone = bootstrap(values, {"thing": own, "style": own}), bootstrap(values, {"question": own})
    assert crossed.high - crossed.low == pytest.approx(alone.high - alone.low, rel=0.1)
    # Student's t with 39 degrees of freedom, 2.023, times the standard error: the interval of textbooks.
    textbook = 2 * 2.0227 * values.std(ddof=1) / 40**0.5
    assert alone.high - alone.low == pytest.approx(textbook, rel=0.1)


@pytest.mark.parametrize("effects", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.5), (0.0, 0.0, 1.0)])
def test_intervals_of_crossed_clusters_cover_the_mean(effects: tuple[float, float, float]) -> None:
    """35 contents and 12 styles with random effects: of 100 studies some 95 should cover the mean, 0."""
    covered = 0
    for study in range(100):
        rng = np.random.default_rng((study, 5))
        styles, things = np.repeat(np.arange(12), 3), rng.integers(0, 35, 36)
        parts = (rng.normal(size=35)[things], rng.normal(size=12)[styles], rng.normal(size=36))
        values = sum(size * part for size, part in zip(effects, parts, strict=True))
        interval = bootstrap(np.asarray(values), {"thing": things.tolist(), "style": styles.tolist()}, resamples=300)
        covered += interval.low <= 0 <= interval.high
    assert covered >= 90


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_intervals_of_few_clusters_have_scipys_t_and_cover_the_mean(clusters: int) -> None:
    """Cluster effects and noise: the interval is at least the t interval of the cluster means, and covers as often.

    Today's 400 studies cover the mean 380 times in expectation, with a standard deviation of 4.4.
    """
    ids, covered = np.repeat(np.arange(clusters), 6), 0
    for study in range(400):
        rng = np.random.default_rng((study, clusters))
        values = rng.normal(size=clusters)[ids] + 0.5 * rng.normal(size=6 * clusters)
        interval = bootstrap(values, {"style": ids.tolist()}, resamples=20)
        means = values.reshape(clusters, 6).mean(1)
        low, high = stats.t.interval(0.95, clusters - 1, means.mean(), means.std(ddof=1) / clusters**0.5)
        assert interval.low <= low + 1e-9
        assert interval.high >= high - 1e-9
        if study < 3:
            wide = bootstrap(values, {"style": ids.tolist()}, resamples=2000)
            assert min(wide.high - wide.mean, wide.mean - wide.low) == pytest.approx((high - low) / 2), "no wider"
        covered += interval.low <= 0 <= interval.high
    assert covered >= 368


def test_one_cluster_gives_no_interval_and_bounds_cut_it() -> None:
    values = np.array([0.0, 1.0, 1.0])
    alone = bootstrap(values, {"style": ["a"] * 3})
    assert (alone.low, alone.high) == (-np.inf, np.inf)
    assert bootstrap(values, {"style": ["a"] * 3}, bounds=(0.0, 1.0)).high == 1
    two = bootstrap(values, {"style": ["a", "a", "b"]}, bounds=(-1.0, 1.0))
    assert (two.low, two.high) == (-1, 1)


def test_wilson_is_the_published_interval() -> None:
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(0, 0) == (0, 1)


def test_a_few_differences_of_one_sign_are_no_difference() -> None:
    values = np.zeros(36)
    values[[3, 20]] = 1.0
    clusters = {"concept": [str(i) for i in range(36)], "style": [str(i // 3) for i in range(36)]}
    assert bootstrap(values, clusters).low <= 0
    values[:30] = 1.0
    assert bootstrap(values, clusters).low > 0
