"""What the referee measures: pure functions from numbers and pixels to numbers, each with a closed-form test.

Notation: x is the picture a method drew for the words c_t and a reference that shows c_r in the style s; c_r is never
c_t.  The truth y(c_t, s) exists.  Sources: the four-way test and the paired distance follow from having the truth;
the counterfactual swap is the interventional reading of leakage (IRS, arXiv 1811.00007); variance shares are eta².
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.uint8]

FOUR = ("right", "style missed", "copied", "both wrong")
"""Where a picture can land in the four-way test."""


def four_way_outcomes(right: Floats, missed: Floats, copied: Floats, both: Floats) -> Floats:
    """The four-way recombination test: which of four true pictures is nearest to x?

    Distances of x to y(c_t, s) [n]; to y(c_t, s') [n, styles]; to y(c_r, s) [n]; to y(c_r, s') [n, styles].  Every
    other style s' makes a test of its own, and a picture's shares over them are returned: [n, 4], in the order of
    `FOUR`, rows summing to 1.  By chance a quarter each.  What ties with another counts for the worse of them, so a
    picture that ignores its question wins nothing.  A copy of the reference is nearest to the third, always.
    """
    styles = missed.shape[1]
    four = np.stack(
        [np.repeat(right[:, None], styles, 1), missed, np.repeat(copied[:, None], styles, 1), both], axis=-1
    )
    # The last among equals: argmin takes the first, so it is asked from the back.
    won = 3 - four[..., ::-1].argmin(-1)
    return np.stack([(won == k).mean(1) for k in range(4)], axis=1)


def normalized_distance(drawn: Floats, oracle: Floats, without: Floats) -> float:
    """The paired distance to the truth as a fraction: 0 as near as the oracle, 1 no nearer than without a reference.

    The oracle is the truth itself after the VAE; all are mean distances to y(c_t, s) over the same questions.
    """
    reach = float(np.mean(without) - np.mean(oracle))
    return float(np.mean(drawn) - np.mean(oracle)) / reach if abs(reach) > 1e-9 else float("nan")


def normalized_distances(drawn: Floats, oracle: Floats, without: Floats) -> Floats:
    """For each question [n] its part in `towards_truth`: their mean is that fraction, their spread that of the ratio.

    The ratio of two means made linear at its value (Taylor), so that it has intervals as every mean has.
    """
    left, far, reach = normalized_distance(drawn, oracle, without), drawn - oracle, without - oracle
    if np.isnan(left):
        return np.full(len(drawn), np.nan)
    return left + (far - left * reach) / reach.mean()


def leakage_rate(scores: Floats, shown: Ints, target: Ints, strata: Sequence[object], top: int = 1) -> Floats:
    """How much oftener than by chance a judge sees the reference's content in x: [n], in -1..1, 0 where none leaks.

    `scores` [n, concepts].  A hit is that the reference's concept is among the `top` best; what is subtracted is how
    often those of the *other* references of its stratum are, so that concepts which a judge names often cost nothing.
    References that show x's own target are left out of that mean.  A stratum without another reference gives NaN.
    """
    best = np.argsort(-scores, axis=1)[:, :top]
    hits: Bools = (best[:, :, None] == shown[None, None, :]).any(1)  # [x, reference]
    return _beyond_others(hits.astype(np.float64), shown, target, strata)


def leakage_nats(log_p: Floats, shown: Ints, target: Ints, strata: Sequence[object]) -> Floats:
    """By how much a judge finds the reference's content likelier in x than what the other references show, in nats.

    As `excess_hit`, of log-probabilities [n, concepts] instead of best guesses: it also sees what falls short of a hit.
    """
    return _beyond_others(log_p[:, shown].astype(np.float64), shown, target, strata)


def _beyond_others(of: Floats, shown: Ints, target: Ints, strata: Sequence[object]) -> Floats:
    """For numbers [x, reference] each x's own reference's less the mean over the other references of its stratum."""
    excess = np.full(len(shown), np.nan)
    for i, stratum in enumerate(strata):
        others = [j for j in range(len(shown)) if strata[j] == stratum and shown[j] not in (shown[i], target[i])]
        if others:
            excess[i] = float(of[i, i]) - float(of[i, others].mean())
    return excess


def counterfactual_leakage(own: Floats, other: Floats) -> Floats:
    """The counterfactual swap, in nats: log p(c_r | x) - log p(c_r | x'), x' drawn with a reference of other content.

    Words, style and seed stay the same, so all that differs is what the reference shows.  `own`, `other`: [n].
    """
    return own - other


def variance_shares(values: Floats, factors: Sequence[str]) -> dict[str, float]:
    """The share of variance (eta²) that each factor of a full factorial block has, and what is left to interaction.

    `values` has an axis a factor, and a last axis of features.
    """
    centre = values.reshape(-1, values.shape[-1]).mean(0)
    total = float(((values - centre) ** 2).sum())
    shares: dict[str, float] = {}
    for axis, factor in enumerate(factors):
        rest = tuple(i for i in range(len(factors)) if i != axis)
        means = values.mean(axis=rest)  # [levels, features]
        repeats = values.size / values.shape[-1] / values.shape[axis]
        shares[factor] = float(((means - centre) ** 2).sum() * repeats / total) if total > 1e-12 else 0.0
    return {**shares, "interaction": max(0.0, 1 - sum(shares.values())) if total > 1e-12 else 0.0}


def copies(to_reference: Floats, to_prompted: Floats) -> Bools:
    """Whether x is nearer to its reference than to any picture of the prompted concept: [n] and [n, pictures]."""
    return to_reference < to_prompted.min(axis=1)


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's r; 0 where nothing varies."""
    a, b = np.ravel(a), np.ravel(b)
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def background_color(pixels: Pixels) -> npt.NDArray[np.float32]:
    """The median Lab colour of the border, two pixels wide: L in 0..100, a and b about -110..110."""
    lab = _lab(pixels)
    edges = (lab[:2], lab[-2:], lab[:, :2], lab[:, -2:])
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0).astype(np.float32)


def background_correlation(drawn: Pixels, references: Pixels) -> tuple[float, float]:
    """Correlation of the grounds of pictures [n, h, w, 3] with their references': of lightness, and of a and b."""
    ours, wanted = (np.stack([background_color(each) for each in pictures]) for pictures in (drawn, references))
    return correlation(ours[:, 0], wanted[:, 0]), correlation(ours[:, 1:], wanted[:, 1:])


def pixel_descriptor(pixels: Pixels) -> npt.NDArray[np.float32]:
    """What two pictures are compared by without training: colours at 16 x 16, and how steep and how varied at 8 x 8.

    L1 between sketches is the distance of the judge `nearest`.  Colours say which thing lies where on which ground;
    steepness says by what line and texture it is drawn.
    """
    lab = _lab(pixels) / 100
    steep = np.abs(cv2.Sobel(lab[..., 0], cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(lab[..., 0], cv2.CV_32F, 0, 1))
    colour = cv2.resize(lab, (16, 16), interpolation=cv2.INTER_AREA)
    mean = cv2.resize(steep, (8, 8), interpolation=cv2.INTER_AREA)
    spread = np.sqrt(np.maximum(cv2.resize(steep**2, (8, 8), interpolation=cv2.INTER_AREA) - mean**2, 0))
    parts = [colour.ravel() / 16, mean.ravel() / 8, spread.ravel() / 8]
    return np.concatenate(parts).astype(np.float32)


def pixel_descriptors(pixels: Pixels) -> npt.NDArray[np.float32]:
    """The sketch of each of several pictures [n, h, w, 3]."""
    return np.stack([pixel_descriptor(each) for each in pixels])


def l1_distance(a: Floats, b: Floats) -> Floats:
    """L1 distance over the last axis; the others are broadcast."""
    return np.asarray(np.abs(a - b).sum(-1))


def cosine_distance(a: Floats, b: Floats) -> Floats:
    """Cosine distance over the last axis, 0 to 2; the others are broadcast."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(1 - (a * b).sum(-1) / np.maximum(length, 1e-9))


def psnr(drawn: Pixels, truth: Pixels) -> float:
    """Peak signal to noise in dB of the mean squared error over all pictures together."""
    error = float(((drawn.astype(np.float64) - truth) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds that hold it in 95 of 100 resamplings."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(
    values: Floats, clusters: Mapping[str, Sequence[object]], resamples: int = 1000, seed: int = 0
) -> Interval:
    """The mean of values [n] and its 95 % interval, resampled by whole clusters, crossed where there are several kinds.

    Ten pictures in one style are one style, not ten: each kind (concept, style) is drawn anew with replacement, and a
    value counts as often as all of its clusters were drawn (the pigeonhole bootstrap, Owen 2007).  Where kinds hardly
    overlap that counts the same chance up to three times, so the resampled means give the interval's shape, and its
    width is that of the two-way variance (Cameron, Gelbach and Miller 2011), by Student's t for few clusters.
    Resampled means of a few differences of one sign never cross 0, so no bound is nearer than the even one.  A mean
    lies between the least and the greatest value, and so does its interval.  NaNs are left out.
    """
    there = ~np.isnan(values)
    values = values[there]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    weights, kinds = np.ones((resamples, len(values))), list[Ints]()
    for names in clusters.values():
        kept = [name for name, is_there in zip(names, there, strict=True) if is_there]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(kept))}
        kinds.append(np.array([numbers[name] for name in kept]))
        drawn = rng.multinomial(len(numbers), [1 / len(numbers)] * len(numbers), size=resamples)
        weights *= drawn[:, kinds[-1]]
    total = weights.sum(1)
    means = (weights @ values)[total > 0] / total[total > 0]
    mean, few = float(values.mean()), min(int(rows.max()) + 1 for rows in kinds)
    spread = float(means.std())
    wanted = _student(few - 1) / 1.96 * _standard_error(values, kinds) if few > 1 else 1e9  # one cluster tells nothing
    stretch = wanted / spread if spread > 1e-12 else 0.0
    low, high = (mean + stretch * (float(each) - mean) for each in np.percentile(means, [2.5, 97.5]))
    low, high = min(low, mean - 1.96 * wanted), max(high, mean + 1.96 * wanted)
    return Interval(mean, max(low, float(values.min())), min(high, float(values.max())))


def _standard_error(values: Floats, kinds: Sequence[Ints]) -> float:
    """Of a mean whose errors are alike within the clusters of each kind: kinds added, what they share taken off."""
    each: dict[int, list[float]] = {}
    for size in range(1, len(kinds) + 1):
        for some in combinations(kinds, size):
            rows = np.unique(np.stack(some), axis=1, return_inverse=True)[1].ravel()
            count = int(rows.max()) + 1
            sums = np.bincount(rows, values - values.mean())
            each.setdefault(size, []).append(float((sums**2).sum()) / len(values) ** 2 * count / max(count - 1, 1))
    whole = sum((-1) ** (size + 1) * sum(some) for size, some in each.items())
    return max(whole, *each[1], 0.0) ** 0.5


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t, by its expansion about the normal (Abramowitz and Stegun 26.7.5)."""
    z, n = 1.959964, float(freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, squared = hits / n, z * z / n
    middle, half = share + squared / 2, z * float(np.sqrt(share * (1 - share) / n + squared / (4 * n)))
    return float((middle - half) / (1 + squared)), float((middle + half) / (1 + squared))


def _lab(pixels: Pixels) -> npt.NDArray[np.float32]:
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return cast("npt.NDArray[np.float32]", lab)
