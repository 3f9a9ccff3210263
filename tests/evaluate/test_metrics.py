"""Every measure against an answer worked out by hand: what is right scores full, what cheats scores nothing."""

import numpy as np
import pytest

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


def _flat(colour: tuple[int, int, int], thing: tuple[int, int, int] = (128, 128, 128)) -> np.ndarray:
    pixels = np.full((SIDE, SIDE, 3), colour, np.uint8)
    pixels[16:48, 16:48] = thing
    return pixels


def test_each_corner_of_the_four_way_test() -> None:
    """Four pictures, each nearest to another of the four truths, against two other styles."""
    near, far = 0.0, 1.0
    right = np.array([near, far, far, far])
    missed = np.array([[far, far], [near, near], [far, far], [far, far]])
    copied = np.array([far, far, near, far])
    both = np.array([[far, far], [far, far], [far, far], [near, near]])
    assert four_way_outcomes(right, missed, copied, both).tolist() == np.eye(4).tolist()


def test_the_other_styles_are_averaged_and_ties_win_nothing() -> None:
    shares = four_way_outcomes(np.array([0.5]), np.array([[0.4, 0.6]]), np.array([0.9]), np.array([[0.9, 0.9]]))
    assert shares.tolist() == [[0.5, 0.5, 0, 0]]
    one = np.ones(1)
    assert four_way_outcomes(one, one[:, None], one, one[:, None])[0, 0] == 0, "equally far from all is not right"


def test_guessing_lands_anywhere_a_quarter_of_the_time() -> None:
    rng = np.random.default_rng(0)
    n, styles = 4000, 1
    shares = four_way_outcomes(rng.random(n), rng.random((n, styles)), rng.random(n), rng.random((n, styles)))
    assert shares.mean(0) == pytest.approx([0.25] * 4, abs=0.03)
    assert shares.sum(1) == pytest.approx(np.ones(n))


def test_towards_truth_is_0_at_the_oracle_and_1_without_a_reference() -> None:
    oracle, without = np.array([0.1, 0.3]), np.array([1.1, 0.9])
    assert normalized_distance(oracle, oracle, without) == pytest.approx(0)
    assert normalized_distance(without, oracle, without) == pytest.approx(1)
    assert normalized_distance((oracle + without) / 2, oracle, without) == pytest.approx(0.5)
    assert normalized_distance(without + 0.8, oracle, without) == pytest.approx(2), "farther than without a reference"
    assert np.isnan(normalized_distance(without, oracle, oracle)), "where a reference can gain nothing, nothing is said"


def test_the_parts_of_a_ratio_have_its_mean_and_its_spread() -> None:
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


def test_excess_hit_by_hand() -> None:
    """Three references show 0, 1, 2 and the targets are 3, 4, 5; the first picture looks like its reference."""
    scores = np.zeros((3, 6))
    scores[0, 0] = scores[1, 4] = scores[2, 0] = 9
    excess = leakage_rate(scores, np.array([0, 1, 2]), np.array([3, 4, 5]), ["near"] * 3)
    # x0 hits its own reference and none of the others; x1 hits none; x2 hits the reference of x0, one of two others.
    assert excess.tolist() == [1.0, 0.0, -0.5]


def test_a_judge_that_always_names_one_thing_finds_no_leak() -> None:
    rng = np.random.default_rng(1)
    shown = rng.integers(10, size=200)
    scores = np.zeros((200, 12))
    scores[:, 3] = 1
    assert np.nanmean(leakage_rate(scores, shown, np.full(200, 11), ["all"] * 200)) == pytest.approx(0, abs=0.01)
    assert np.nanmean(leakage_rate(np.eye(12)[shown], shown, np.full(200, 11), ["all"] * 200)) == pytest.approx(1)


def test_excess_hits_keep_to_their_stratum() -> None:
    scores = np.eye(3)
    excess = leakage_rate(scores, np.array([0, 1, 2]), np.array([9, 9, 9]), ["near", "near", "far"])
    assert excess[:2].tolist() == [1.0, 1.0]
    assert np.isnan(excess[2]), "one reference has nobody to be compared with"


def test_swap_leak_is_the_difference_in_nats() -> None:
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


def test_grounds_that_follow_and_grounds_that_do_not() -> None:
    colours = ((230, 40, 40), (30, 60, 200), (240, 240, 90), (20, 20, 20))
    references = np.stack([_flat(c) for c in colours])
    assert background_correlation(references, references) == pytest.approx((1, 1))
    assert background_correlation(np.stack([_flat((9, 9, 9))] * 4), references)[0] == 0
    assert background_color(_flat((255, 0, 0))).tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.7)


def test_a_sketch_sees_colour_and_line() -> None:
    plain, other, lined = _flat((200, 200, 200)), _flat((200, 40, 40)), _flat((200, 200, 200))
    lined[::4] = 0
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(plain)) == 0
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(other)) > 0.5
    assert metrics.l1_distance(pixel_descriptor(plain), pixel_descriptor(lined)) > 0.5


def test_angle_is_one_minus_cosine() -> None:
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
    by_style = bootstrap(values, {"style": ["a"] * 20 + ["b"] * 20})
    assert alone.mean == by_style.mean == 0.5
    # A mean of 40 coin tosses: 1.96 * 0.5 / sqrt(40) = 0.155 each way.
    assert (alone.low, alone.high) == pytest.approx((0.345, 0.655), abs=0.04)
    assert (by_style.low, by_style.high) == (0, 1)
    assert np.isnan(bootstrap(np.array([np.nan]), {"a": [1]}).mean)


def test_chance_that_two_kinds_of_cluster_share_is_counted_once() -> None:
    """Every picture of its own thing and its own style is as if of neither: the width is that of plain resampling."""
    values, own = np.random.default_rng(3).normal(size=40), list(range(40))
    crossed, alone = bootstrap(values, {"thing": own, "style": own}), bootstrap(values, {"question": own})
    assert crossed.high - crossed.low == pytest.approx(alone.high - alone.low, rel=0.1)
    # Student's t with 39 degrees of freedom, 2.023, times the standard error: the interval of textbooks.
    textbook = 2 * 2.0227 * values.std(ddof=1) / 40**0.5
    assert alone.high - alone.low == pytest.approx(textbook, rel=0.1)


@pytest.mark.parametrize("effects", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.5), (0.0, 0.0, 1.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(effects: tuple[float, float, float]) -> None:
    """A world of 35 things and 12 styles whose chance is known: of 100 studies some 95 are to hold its mean, 0."""
    held = 0
    for study in range(100):
        rng = np.random.default_rng((study, 5))
        styles, things = np.repeat(np.arange(12), 3), rng.integers(0, 35, 36)
        parts = (rng.normal(size=35)[things], rng.normal(size=12)[styles], rng.normal(size=36))
        values = sum(size * part for size, part in zip(effects, parts, strict=True))
        found = bootstrap(np.asarray(values), {"thing": things.tolist(), "style": styles.tolist()}, resamples=300)
        held += found.low <= 0 <= found.high
    assert held >= 90


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
