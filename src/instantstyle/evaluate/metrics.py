"""Metrics of the evaluation: pure functions from arrays to numbers, each with a closed-form test.

Notation: x is the image that a method generated for the prompt c_t and a reference that shows c_r in the style s; c_r
is never c_t.  The ground truth y(c_t, s) exists.  Sources: the four-way test and the paired distance follow from having
the truth; the counterfactual swap is the interventional reading of leakage (IRS, arXiv 1811.00007); variance shares are
eta².
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from instantstyle.utils.extras import import_extra

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.uint8]
"""[side, side, 3], or several of them stacked in front."""

FOUR_WAY_OUTCOMES = ("right", "style missed", "copied", "both wrong")
"""Outcomes of the four-way test."""


def four_way_outcomes(right: Floats, missed: Floats, copied: Floats, both: Floats) -> Floats:
    """The four-way recombination test: which of four true images is nearest to x?

    Distances of x to y(c_t, s) [n]; to y(c_t, s') [n, styles]; to y(c_r, s) [n]; to y(c_r, s') [n, styles].  Every
    other style s' makes a test of its own, and an image's shares over them are returned: [n, 4], in the order of
    `FOUR_WAY_OUTCOMES`, rows summing to 1.  By chance a quarter each.  Ties count for the worse outcome, so an image
    that ignores its task wins nothing.  A copy of the reference is nearest to the third, always.
    """
    styles = missed.shape[1]
    four = np.stack(
        [np.repeat(right[:, None], styles, 1), missed, np.repeat(copied[:, None], styles, 1), both], axis=-1
    )
    # The last among equals: argmin takes the first, so the order is reversed.
    nearest = 3 - four[..., ::-1].argmin(-1)
    return np.stack([(nearest == k).mean(1) for k in range(4)], axis=1)


def normalized_distance(generated: Floats, oracle: Floats, baseline: Floats) -> float:
    """The paired distance to the truth as a fraction: 0 as near as the oracle, 1 no nearer than without a reference.

    Arguments are distances to y(c_t, s) [n] over the same tasks: of the method's images, of the truth itself after
    the VAE, and of images generated without a reference.  NaN where the last two are equally far.
    """
    reach = float(np.mean(baseline) - np.mean(oracle))
    return float(np.mean(generated) - np.mean(oracle)) / reach if abs(reach) > 1e-9 else float("nan")


def normalized_distances(generated: Floats, oracle: Floats, baseline: Floats) -> Floats:
    """Per task [n] the linearised `normalized_distance`: the mean is that fraction, the spread that of the ratio.

    The first-order Taylor expansion (delta method) of a ratio of means, so that it has intervals as every mean has.
    """
    ratio, excess, reach = normalized_distance(generated, oracle, baseline), generated - oracle, baseline - oracle
    if np.isnan(ratio):
        return np.full(len(generated), np.nan)
    return ratio + (excess - ratio * reach) / reach.mean()


def leakage_rate(scores: Floats, shown: Ints, target: Ints, strata: Sequence[object], top: int = 1) -> Floats:
    """How much more often than by chance a classifier finds the reference's content in x: [n], -1 to 1, 0 for no leak.

    `scores` [n, concepts]; `shown` and `target` [n] are the indices of c_r and c_t.  A hit is that the reference's
    concept is among the `top` best; subtracted is how often those of the *other* references of its stratum are, so
    that concepts which a classifier often predicts cost nothing.  References that show x's own target are left out of
    that mean.  A stratum without another reference gives NaN.
    """
    best = np.argsort(-scores, axis=1)[:, :top]
    hits: Bools = (best[:, :, None] == shown[None, None, :]).any(1)  # [x, reference]
    return _excess_over_others(hits.astype(np.float64), shown, target, strata)


def leakage_nats(log_p: Floats, shown: Ints, target: Ints, strata: Sequence[object]) -> Floats:
    """By how many nats a classifier finds the reference's content likelier in x than the other references' content.

    As `leakage_rate`, of log-probabilities [n, concepts] instead of the best labels: also sensitive below a hit.
    """
    return _excess_over_others(log_p[:, shown].astype(np.float64), shown, target, strata)


def _excess_over_others(values: Floats, shown: Ints, target: Ints, strata: Sequence[object]) -> Floats:
    """For values [x, reference] each x's own reference's less the mean over the other references of its stratum."""
    excess = np.full(len(shown), np.nan)
    for i, stratum in enumerate(strata):
        others = [j for j in range(len(shown)) if strata[j] == stratum and shown[j] not in (shown[i], target[i])]
        if others:
            excess[i] = float(values[i, i]) - float(values[i, others].mean())
    return excess


def counterfactual_leakage(own: Floats, other: Floats) -> Floats:
    """The counterfactual swap in nats: log p(c_r | x) - log p(c_r | x'), x' from a reference of other content.

    Prompt, style and seed stay the same, so only the reference's content differs.  `own`, `other`: [n].
    """
    return own - other


def variance_shares(values: Floats, factors: Sequence[str]) -> dict[str, float]:
    """The share of variance (eta²) that each factor of a full factorial block explains, and the interaction.

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
    """Whether x is nearer to its reference than to any image of the prompted concept: [n] and [n, images]."""
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


def background_correlation(generated: Pixels, references: Pixels) -> tuple[float, float]:
    """Pearson's r of the background colours of images [n, h, w, 3] with their references': of L, and of a and b."""
    a, b = (np.stack([background_color(image) for image in images]) for images in (generated, references))
    return correlation(a[:, 0], b[:, 0]), correlation(a[:, 1:], b[:, 1:])


def pixel_descriptor(pixels: Pixels) -> npt.NDArray[np.float32]:
    """An untrained descriptor of an image [h, w, 3]: Lab at 16 x 16, mean and deviation of the gradient at 8 x 8.

    L1 between descriptors is the distance of the metric `pixels`.  Colours stand for content and background, gradients
    for line and texture.
    """
    lab = _lab(pixels) / 100
    gradient = np.abs(cv2.Sobel(lab[..., 0], cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(lab[..., 0], cv2.CV_32F, 0, 1))
    colour = cv2.resize(lab, (16, 16), interpolation=cv2.INTER_AREA)
    mean = cv2.resize(gradient, (8, 8), interpolation=cv2.INTER_AREA)
    spread = np.sqrt(np.maximum(cv2.resize(gradient**2, (8, 8), interpolation=cv2.INTER_AREA) - mean**2, 0))
    parts = [colour.ravel() / 16, mean.ravel() / 8, spread.ravel() / 8]
    return np.concatenate(parts).astype(np.float32)


def pixel_descriptors(pixels: Pixels) -> npt.NDArray[np.float32]:
    """The descriptors of images [n, h, w, 3], [n, 896]."""
    return np.stack([pixel_descriptor(each) for each in pixels])


def l1_distance(a: Floats, b: Floats) -> Floats:
    """L1 distance over the last axis; the others are broadcast."""
    return np.asarray(np.abs(a - b).sum(-1))


def cosine_distance(a: Floats, b: Floats) -> Floats:
    """Cosine distance over the last axis, 0 to 2; the others are broadcast."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(1 - (a * b).sum(-1) / np.maximum(length, 1e-9))


def psnr(images: Pixels, truths: Pixels) -> float:
    """Peak signal to noise ratio in dB of the mean squared error over all images together."""
    error = float(((images.astype(np.float64) - truths) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval; the ends are infinite where there is only one cluster."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain at that level."""
        return self.low > 0 or self.high < 0


NO_INTERVAL = Interval(float("nan"), float("nan"), float("nan"))


def bootstrap(
    values: Floats,
    clusters: Mapping[str, Sequence[object]],
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The mean of values [n] and its 95 % interval, resampled by whole clusters, crossed where there are several kinds.

    Ten pictures in one style are one style, not ten: each kind (concept, style) is drawn anew with replacement, and a
    value counts as often as all of its clusters were drawn (the pigeonhole bootstrap, Owen 2007).  Where kinds hardly
    overlap that counts the same variance up to three times, so the resampled means give the interval's shape, and its
    width is that of the two-way variance (Cameron, Gelbach and Miller 2011) with Student's t for few clusters.
    Resampled means of a few differences of one sign never cross 0, so neither end is nearer than the symmetric one.

    `bounds`: the range that values of this measure have, to which the interval is cut.  The range of the values
    themselves would be too narrow: two clusters lie on one side of the true mean half of the time.  NaNs are left out.
    """
    known = ~np.isnan(values)
    values = values[known]
    if not len(values):
        return NO_INTERVAL
    rng = np.random.default_rng(seed)
    weights, kinds = np.ones((resamples, len(values))), list[Ints]()
    for names in clusters.values():
        kinds.append(np.unique([str(name) for name in np.asarray(names, object)[known]], return_inverse=True)[1])
        count = int(kinds[-1].max()) + 1
        weights *= rng.multinomial(count, [1 / count] * count, size=resamples)[:, kinds[-1]]
    mean, smallest = float(values.mean()), min(int(kind.max()) + 1 for kind in kinds)
    if smallest == 1:
        return Interval(mean, *bounds)
    half = float(import_extra("scipy.special", "evaluate").stdtrit(smallest - 1, 0.975)) * _standard_error(
        values, kinds
    )
    total = weights.sum(1)
    means = (weights @ values)[total > 0] / total[total > 0]
    spread = 1.96 * float(means.std())
    stretch = half / spread if spread > 1e-12 else 0.0
    low, high = (mean + stretch * (float(each) - mean) for each in np.percentile(means, [2.5, 97.5]))
    return Interval(mean, max(min(low, mean - half), bounds[0]), min(max(high, mean + half), bounds[1]))


def _standard_error(values: Floats, kinds: Sequence[Ints]) -> float:
    """Of a mean whose errors correlate within the clusters of each kind: kinds added, what they share subtracted."""
    variances: dict[int, list[float]] = {}
    for size in range(1, len(kinds) + 1):
        for chosen in combinations(kinds, size):
            groups = np.unique(np.stack(chosen), axis=1, return_inverse=True)[1].ravel()
            count = int(groups.max()) + 1
            sums = np.bincount(groups, values - values.mean())
            variance = float((sums**2).sum()) / len(values) ** 2 * count / max(count - 1, 1)
            variances.setdefault(size, []).append(variance)
    combined = sum((-1) ** (size + 1) * sum(each) for size, each in variances.items())
    return max(combined, *variances[1], 0.0) ** 0.5


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, 0 to 1 without observations."""
    if n == 0:
        return 0.0, 1.0
    share, squared = hits / n, z * z / n
    middle, half = share + squared / 2, z * float(np.sqrt(share * (1 - share) / n + squared / (4 * n)))
    return float((middle - half) / (1 + squared)), float((middle + half) / (1 + squared))


def _lab(pixels: Pixels) -> npt.NDArray[np.float32]:
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return cast("npt.NDArray[np.float32]", lab)
