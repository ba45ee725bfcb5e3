"""Host-side scores of whole images.

    v_rand, v_info = scores.segment_curve(probability, mask == CELL)    # one slice, 11 thresholds

    calibration = scores.Calibration()                                  # additive over images
    for probabilities, mask in predictions:
        calibration.add(probabilities, mask)
    error = calibration.error()

Nothing here needs TensorFlow. Thinned segments need scikit-image (the extra `scores`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unet_core.conventions import IGNORED
from unet_core.errors import UserError

SEGMENT_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9999999999999999)
"""The thresholds at which the ISBI 2012 challenge scores a probability map."""

SEGMENTS_NEED = (
    "V_Rand and V_Info need scikit-image, which is not installed: pip install 'unet_core[scores]'."
)

OBJECT_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""The overlaps (IoU) at which objects are matched: 0.5, 0.55 ... 0.95."""

_SIGMAS = (0, 1, 2, 3)
_UNET_MEDICAL_SIZE = (388, 388)


# A baseline


class ThresholdBaseline:
    """The best Dice that any one threshold of the grey values reaches.

    The threshold is chosen knowing the ground truth, so none that is chosen without it does better.
    Thresholds of the images as they are and blurred by Gaussians of 1, 2 and 3 pixels are tried,
    both the dark and the bright side. Images are added one by one, so any number will do.

    Args:
        classes: Number of classes.

    Attributes:
        counts: [4, classes, 256] int64, pixels by blur, true class and grey value.
    """

    def __init__(self, classes: int):
        self.counts = np.zeros((len(_SIGMAS), classes, 256), np.int64)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Counts one `image` [H, W] uint8 and its `mask` [H, W] of class ids or `IGNORED`."""
        kept = mask != IGNORED
        ids = mask[kept].astype(np.int64) * 256
        for counts, sigma in zip(self.counts, _SIGMAS, strict=True):
            values = cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image
            counts += np.bincount(ids + values[kept], minlength=counts.size).reshape(counts.shape)

    def best(self, class_id: int) -> tuple[float, str] | None:
        """Returns the best Dice of `class_id` and how it is reached; None if it does not occur."""
        best, how = 0.0, ""
        for counts, sigma in zip(self.counts, _SIGMAS, strict=True):
            total = counts[class_id].sum()
            dark_hits, dark_all = np.cumsum(counts[class_id]), np.cumsum(counts.sum(0))
            for side, hits, above in (
                ("<=", dark_hits, dark_all),
                (">", dark_hits[-1] - dark_hits, dark_all[-1] - dark_all),
            ):
                dice = 2 * hits / np.maximum(above + total, 1)
                if dice.max() > best:
                    best = float(dice.max())
                    blurred = f" after a blur of {sigma} px" if sigma else ""
                    how = f"grey {side} {int(dice.argmax())}{blurred}"
        return (best, how) if how else None


# Segments between membranes, as the ISBI 2012 challenge scores them


class SegmentScores(NamedTuple):
    """V_Rand and V_Info of one image, unitless; 1 is perfect, NaN if no true cell is there."""

    v_rand: float
    v_info: float


def segment_scores(probability: np.ndarray, truth: np.ndarray, threshold: float) -> SegmentScores:
    """Returns V_Rand and V_Info of the segments above one threshold, after border thinning.

    The true segments T are the 4-connected components of the true cells. The predicted ones S are
    those of `probability > threshold`, grown over the rest until dams of one pixel separate them.
    Over the n pixels of true cells, c_ij of them in T = i and S = j, with row sums a_i (dams
    included) and column sums b_j, z of them in dams, where every dam pixel is a segment of its own:

        V_Rand = 2 AB / (A + B), A = sum a_i^2, B = sum b_j^2 + z, AB = sum c_ij^2 + z
        V_Info = 2 (H_T + H_S - H_TS) / (H_T + H_S), 0 where H_T or H_S is 0

    where H_T is the entropy of a_i / n, H_S of b_j / n and 1/n for each dam pixel, H_TS of c_ij / n
    and the same. If nothing exceeds the threshold, the image is one segment.

    Args:
        probability: [H, W] float, of the cells, in [0, 1].
        truth: [H, W]; 1 or True in cells, and anything else (membranes, `IGNORED`) left out.
        threshold: In [0, 1]; those of the challenge are `SEGMENT_THRESHOLDS`.

    Raises:
        UserError: If scikit-image is missing.
        ValueError: If the shapes differ.

    Source: Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142, as in Fiji's Trainable
        Segmentation.
    """
    _check_shapes(probability=probability, truth=truth)
    return _overlap_scores(_components(truth == 1), _thinned_segments(probability, threshold))


def can_score_segments() -> bool:
    """Returns whether `segment_scores` can be called: whether scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


def segment_curve(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns V_Rand [11] and V_Info [11] float64 at `SEGMENT_THRESHOLDS`.

    The score of a stack is the maximum over the thresholds of the mean over its slices.
    `segment_scores` describes arguments, errors and source.
    """
    _check_shapes(probability=probability, truth=truth)
    cells = _components(truth == 1)

    def scored(threshold: float) -> SegmentScores:
        return _overlap_scores(cells, _thinned_segments(probability, threshold))

    # Growing segments takes most of the time, and does not hold the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        v_rand, v_info = np.array(list(pool.map(scored, SEGMENT_THRESHOLDS))).T
    return v_rand, v_info


def stack_scores(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    chosen: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Returns V_Rand and V_Info of a stack.

    Values are averaged over the slices at each threshold; then the maximum is taken, and its
    threshold. Besides, the mean at thresholds chosen elsewhere.

    Args:
        curves: Slice -> "v_rand" and "v_info" -> values at `SEGMENT_THRESHOLDS`; slices without
            true cells (NaN) do not count.
        chosen: Slice -> "v_rand" and "v_info" -> one of `SEGMENT_THRESHOLDS`, chosen on training
            images; None, or a slice without one, leaves these means out.

    Returns:
        `v_rand`, `v_rand/threshold` and, of chosen ones, `v_rand/chosen`; `v_info` likewise.
    """
    total: dict[str, float] = {}
    for score in ("v_rand", "v_info"):
        defined = [curve[score] for curve in curves.values() if not np.isnan(curve[score]).all()]
        if not defined:
            total |= {score: float("nan"), f"{score}/threshold": float("nan")}
            continue
        means = np.nanmean(defined, axis=0)
        best = int(np.argmax(means))
        total[score] = float(means[best])
        total[f"{score}/threshold"] = SEGMENT_THRESHOLDS[best]
        if chosen and all(score in thresholds for thresholds in chosen.values()):
            values = [
                curve[score][SEGMENT_THRESHOLDS.index(chosen[name][score])]
                for name, curve in curves.items()
            ]
            total[f"{score}/chosen"] = float(np.nanmean(values))
    return total


def legacy_rand_f1(probability: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Returns the F-score of pixel pairs, without border thinning; 1 is perfect.

    Pairs of pixels of true cells, by whether both lie in one segment of the truth, of the
    prediction, or of both:

        F = 2 TP / (P + Q)
        TP = sum c_ij (c_ij - 1) / 2, P = sum a_i (a_i - 1) / 2, Q = sum b_j (b_j - 1) / 2

    with the counts of `segment_scores`, but S = 0 where the probability does not exceed the
    threshold; such pixels are in no predicted pair. The first ranking of the challenge was by the
    "Rand error" 1 - F, at the best threshold.

    Args:
        probability: [H, W] float, of the cells, in [0, 1].
        truth: [H, W]; 1 or True in cells, and anything else (membranes, `IGNORED`) left out.
        threshold: In [0, 1].

    Returns:
        The score, unitless, in [0, 1]; NaN if neither has a pair.

    Raises:
        ValueError: If the shapes differ.

    Source: `foregroundRestrictedRandIndex` in Fiji's Trainable Segmentation, `RandError.java`;
        Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142.
    """
    _check_shapes(probability=probability, truth=truth)
    counts = _overlaps(_components(truth == 1), _components(_above(probability, threshold)))
    hits, true, predicted = (
        int(sizes @ (sizes - 1)) for sizes in (counts.both, counts.true, counts.predicted)
    )
    return 2 * hits / (true + predicted) if true + predicted else float("nan")


def pixel_error(probability: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Returns the share of pixels in which the thresholded probability and the truth differ.

    Args:
        probability: [H, W] float, in [0, 1].
        truth: [H, W]; 1 or True where the probability should exceed the threshold. Pixels that are
            `IGNORED` are not counted.
        threshold: In [0, 1].

    Returns:
        The share, in [0, 1], 0 is perfect; NaN if no pixel counts.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(probability=probability, truth=truth)
    wrong = (_above(probability, threshold) != (truth == 1))[truth != IGNORED]
    return float(wrong.mean()) if wrong.size else float("nan")


def _above(probability: np.ndarray, threshold: float) -> np.ndarray:
    # In float64: as float32 the last of the thresholds would be 1, which nothing exceeds.
    return probability.astype(np.float64) > threshold


def _components(mask: np.ndarray) -> np.ndarray:
    """Returns the ids [H, W] int32 of the 4-connected components of a bool mask; 0 is outside."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]


def _thinned_segments(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the ids [H, W] int32 of the segments above a threshold.

    They are grown until dams of one pixel separate them; 0 is a dam.
    """
    try:
        from skimage.segmentation import watershed
    except ImportError as error:
        raise UserError(SEGMENTS_NEED) from error
    above = _above(probability, threshold)
    if not above.any():
        return np.ones(above.shape, np.int32)
    # A flat relief: the probability itself would put the dams elsewhere than Fiji does.
    return watershed(~above, _components(above), connectivity=1, watershed_line=True)


class _Overlaps(NamedTuple):
    """Pixels [...] int64 by true segment, by predicted segment and by pair of both.

    All are counted over the pixels of true segments; those in no predicted segment are `outside`,
    and in `true` only.
    """

    true: np.ndarray
    predicted: np.ndarray
    both: np.ndarray
    outside: int


def _overlaps(true: np.ndarray, predicted: np.ndarray) -> _Overlaps:
    """Counts the pixels of ids [H, W], non-negative integers, where 0 is no segment."""
    kept = true > 0
    true, predicted = true[kept].astype(np.int64), predicted[kept].astype(np.int64)
    by_predicted = np.bincount(predicted, minlength=1)
    pairs = (true * by_predicted.size + predicted)[predicted > 0]
    return _Overlaps(
        true=_positive(np.bincount(true)),
        predicted=_positive(by_predicted[1:]),
        both=np.unique(pairs, return_counts=True)[1],
        outside=int(by_predicted[0]),
    )


def _positive(counts: np.ndarray) -> np.ndarray:
    return counts[counts > 0]


def _overlap_scores(true: np.ndarray, predicted: np.ndarray) -> SegmentScores:
    counts = _overlaps(true, predicted)
    pixels = int(counts.true.sum())
    if not pixels:
        return SegmentScores(float("nan"), float("nan"))
    dams = counts.outside
    true_pairs = int(counts.true @ counts.true)
    predicted_pairs = int(counts.predicted @ counts.predicted) + dams
    both_pairs = int(counts.both @ counts.both) + dams

    dam_entropy = dams / pixels * np.log(pixels)
    true_entropy = _entropy(counts.true / pixels)
    predicted_entropy = _entropy(counts.predicted / pixels) + dam_entropy
    both_entropy = _entropy(counts.both / pixels) + dam_entropy
    v_info = 0.0
    if true_entropy > 0 and predicted_entropy > 0:
        total = true_entropy + predicted_entropy
        v_info = float(2 * (total - both_entropy) / total)
    return SegmentScores(2 * both_pairs / (true_pairs + predicted_pairs), v_info)


def _entropy(shares: np.ndarray) -> float:
    """Returns the entropy in nats of positive shares; of no or one certain share it is 0."""
    return float(-(shares * np.log(shares)).sum())


# Boundaries of one class


def boundary_f1(
    predicted: np.ndarray,
    truth: np.ndarray,
    tolerance_px: float = 2.0,
    kept: np.ndarray | None = None,
) -> float:
    """Returns the F1 score of the boundary of one class in one image.

    A boundary pixel is one of the class with a 4-neighbour that is not. Precision is the share of
    predicted boundary pixels within the tolerance of a true one, recall the share of true ones
    within it of a predicted one; F1 = 2 precision recall / (precision + recall).

    Args:
        predicted: [H, W] bool, where the class is predicted.
        truth: [H, W] bool, where it is.
        tolerance_px: Pixels, >= 0, between pixel centres.
        kept: [H, W] bool, the pixels that count; None is all. A pixel that does not count is no
            boundary pixel and, like the edge of the image, makes none of its neighbours.

    Returns:
        The score, unitless, in [0, 1]; NaN if neither has a boundary, 0 if only one has.

    Raises:
        ValueError: If the shapes differ.

    Source: Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?,
        doi 10.5244/C.27.32.
    """
    kept = _kept(kept, predicted=predicted, truth=truth)
    predicted, truth = (_boundary(mask, kept, closed=False) for mask in (predicted, truth))
    if not predicted.any() and not truth.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return 0.0
    precision = (_distances(predicted, truth) <= tolerance_px).mean()
    recall = (_distances(truth, predicted) <= tolerance_px).mean()
    # Both are 0 or neither: a pair of pixels within the tolerance counts in both.
    return float(2 * precision * recall / (precision + recall)) if precision else 0.0


def hausdorff95(predicted: np.ndarray, truth: np.ndarray, kept: np.ndarray | None = None) -> float:
    """Returns the 95 % Hausdorff distance of the boundaries of one class in one image.

    That is the greater of two directed distances: the 95th percentile, linear between ranks, of the
    distances of the predicted boundary pixels to the nearest true one, and the same of the true
    ones. A boundary pixel is one of the class with a 4-neighbour that is not, or that lies beyond
    the edge of the image or does not count: a class that has pixels then has a boundary.

    Args:
        predicted: [H, W] bool, where the class is predicted.
        truth: [H, W] bool, where it is.
        kept: [H, W] bool, the pixels that count; None is all.

    Returns:
        The distance in pixels, 0 is perfect; NaN if neither has pixels, the diagonal of the image
        (more than any distance in it) if only one has.

    Raises:
        ValueError: If the shapes differ.

    Source: Huttenlocher et al. 1993, doi 10.1109/34.232073, with ranked distances.
    """
    kept = _kept(kept, predicted=predicted, truth=truth)
    predicted, truth = (_boundary(mask, kept, closed=True) for mask in (predicted, truth))
    if not predicted.any() and not truth.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return float(np.hypot(*truth.shape))
    there, back = _distances(predicted, truth), _distances(truth, predicted)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _boundary(mask: np.ndarray, kept: np.ndarray, *, closed: bool) -> np.ndarray:
    """Returns where [H, W] a pixel of `mask` has a 4-neighbour that is not of it.

    Pixels beyond the edge of the image and those not `kept` are such neighbours if `closed`.
    """
    inside = mask & kept
    others = np.pad(~inside if closed else kept & ~mask, 1, constant_values=closed)
    beside = others[:-2, 1:-1] | others[2:, 1:-1] | others[1:-1, :-2] | others[1:-1, 2:]
    return inside & beside


def _distances(pixels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the distances [n] float64 in pixels from the n pixels of `pixels` to `others`.

    Each is that to the nearest one. Both are [H, W] bool; `others` has some.
    """
    far = (~others).astype(np.uint8)
    distances = cv2.distanceTransform(far, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares of distances are whole numbers; OpenCV 5.0 does not always round them alike.
    return np.sqrt(np.rint(np.square(distances[pixels].astype(np.float64))))


# Probabilities, counted image by image


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """The pixels whose confidence lies in (`low`, `high`].

    Attributes:
        low: The lower bound.
        high: The upper bound.
        pixels: Their number.
        confidence: Their mean confidence; NaN if there are none.
        accuracy: The share of them that is right; NaN if there are none.
    """

    low: float
    high: float
    pixels: int
    confidence: float
    accuracy: float


class Calibration:
    """How far the confidence of a prediction is from the share of predictions that are right.

    The confidence of a pixel is the probability of its predicted class, the most probable one.
    Images are added one by one; memory does not grow with their number.

    Args:
        bins: Number of bins of equal width over [0, 1], > 0.

    Attributes:
        pixels: [bins] int64, the pixels of each bin.
        hits: [bins] int64, those of them that are right.
        confidence: [bins] float64, the sums of their confidences.

    Raises:
        ValueError: If `bins` is not positive.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """

    def __init__(self, bins: int = 15):
        if bins < 1:
            raise ValueError(f"`bins` ({bins}) must be positive.")
        self.pixels = np.zeros(bins, np.int64)
        self.hits = np.zeros(bins, np.int64)
        self.confidence = np.zeros(bins, np.float64)

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Counts one image.

        Args:
            probabilities: [H, W, C] float, summing to 1 over the classes.
            truth: [H, W] class ids below C, or `IGNORED`.

        Raises:
            ValueError: If height or width differ.
        """
        _check_shapes(probabilities=probabilities[..., 0], truth=truth)
        kept = truth != IGNORED
        probabilities = probabilities[kept]
        confidence = probabilities.max(-1).astype(np.float64)
        hit = probabilities.argmax(-1) == truth[kept]
        bins = self.pixels.size
        # A probability of 0 is in the first bin, one that rounding put above 1 in the last.
        index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        self.pixels += np.bincount(index, minlength=bins)
        self.hits += np.bincount(index[hit], minlength=bins)
        self.confidence += np.bincount(index, confidence, minlength=bins)

    def error(self) -> float:
        """Returns the expected calibration error (ECE), in [0, 1].

        It is the mean over all pixels of |accuracy - confidence| of their bin. NaN if there are no
        pixels.
        """
        pixels = self.pixels.sum()
        if not pixels:
            return float("nan")
        return float(np.abs(self.hits - self.confidence).sum() / pixels)

    def table(self) -> list[CalibrationBin]:
        """Returns all bins, from low confidence to high."""
        bins = self.pixels.size
        with np.errstate(invalid="ignore"):
            confidence, accuracy = self.confidence / self.pixels, self.hits / self.pixels
        return [
            CalibrationBin(
                low=i / bins,
                high=(i + 1) / bins,
                pixels=int(self.pixels[i]),
                confidence=float(confidence[i]),
                accuracy=float(accuracy[i]),
            )
            for i in range(bins)
        ]


class PrecisionRecall:
    """Precision and recall of one class at every threshold.

    Images are added one by one; memory does not grow with their number. Every probability is
    rounded to the nearest multiple of 1 / `levels` first: the results are exact for the rounded
    ones.

    Args:
        levels: Steps from 0 to 1, > 0.

    Attributes:
        counts: [2, levels + 1] int64, pixels that are not of the class and that are, by level.

    Raises:
        ValueError: If `levels` is not positive.
    """

    def __init__(self, levels: int = 1000):
        if levels < 1:
            raise ValueError(f"`levels` ({levels}) must be positive.")
        self._levels = levels
        self.counts = np.zeros((2, levels + 1), np.int64)

    def add(
        self, probability: np.ndarray, truth: np.ndarray, kept: np.ndarray | None = None
    ) -> None:
        """Counts one image.

        Args:
            probability: [H, W] float, of the class, in [0, 1].
            truth: [H, W] bool, where the class is.
            kept: [H, W] bool, the pixels that count; None is all.

        Raises:
            ValueError: If the shapes differ.
        """
        kept = _kept(kept, probability=probability, truth=truth)
        level = np.rint(probability[kept].astype(np.float64) * self._levels).astype(np.int64)
        index = truth[kept] * (self._levels + 1) + np.clip(level, 0, self._levels)
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(2, -1)

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns precision, recall and thresholds, each [n] float64, for the n levels that occur.

        The highest is the first. A pixel at the threshold is predicted. Recall is NaN if the class
        is nowhere.
        """
        occurs = np.flatnonzero(self.counts.sum(0))[::-1]
        negatives, positives = self.counts[:, occurs].cumsum(1)
        precision = positives / (positives + negatives)
        with np.errstate(invalid="ignore"):
            recall = positives / self.counts[1].sum()
        return precision, recall, occurs / self._levels

    def histogram(self, bins: int) -> np.ndarray:
        """Returns the pixels [2, bins] int64 by probability: not of the class, of the class.

        The bins are of equal width, each with its lower bound, the last with 1 too.

        Raises:
            ValueError: If the levels cannot be put into so many bins of equal width.
        """
        if self._levels % bins:
            raise ValueError(f"`bins` ({bins}) must divide the {self._levels} levels.")
        counts = self.counts[:, :-1].reshape(2, bins, -1).sum(-1)
        counts[:, -1] += self.counts[:, -1]
        return counts

    def average_precision(self) -> float:
        """Returns the sum of (R_n - R_n-1) P_n over falling thresholds, in [0, 1].

        It is `sklearn.metrics.average_precision_score`. NaN if the class is nowhere.
        """
        if not self.counts[1].any():
            return float("nan")
        precision, recall, _ = self.curve()
        return float(np.diff(recall, prepend=0.0) @ precision)


# Objects


class ObjectMatches(NamedTuple):
    """Objects of one image.

    Attributes:
        hits: [10] int64, the matched pairs at each of `OBJECT_THRESHOLDS`.
        predicted: Number of predicted objects.
        true: Number of true objects.
    """

    hits: np.ndarray
    predicted: int
    true: int


def object_scores(
    predicted_labels: np.ndarray, true_labels: np.ndarray, kept: np.ndarray | None = None
) -> ObjectMatches:
    """Matches the objects of one image one to one.

    Two objects match at a threshold if their intersection over union exceeds it. Since that is more
    than a half, no object has two matches, and the order does not matter; at an IoU of just 0.5,
    where it could have two, there is no match.

    Args:
        predicted_labels: [H, W] integer ids of the predicted objects, 0 is background.
        true_labels: [H, W] integer ids of the true objects, 0 is background.
        kept: [H, W] bool, the pixels that count; None is all. What does not count is cut off both.

    Raises:
        ValueError: If the shapes differ.

    Source: Caicedo et al. 2019, Nucleus segmentation across imaging experiments: the 2018 Data
        Science Bowl, doi 10.1038/s41592-019-0612-7.
    """
    kept = _kept(kept, predicted_labels=predicted_labels, true_labels=true_labels)
    predicted_ids, predicted = np.unique(np.where(kept, predicted_labels, 0), return_inverse=True)
    true_ids, true = np.unique(np.where(kept, true_labels, 0), return_inverse=True)
    table = np.unique(true.ravel() * predicted_ids.size + predicted.ravel(), return_counts=True)
    row, column = np.divmod(table[0], predicted_ids.size)
    predicted_sizes, true_sizes = np.bincount(predicted.ravel()), np.bincount(true.ravel())
    iou = table[1] / (true_sizes[row] + predicted_sizes[column] - table[1])
    iou = iou[(true_ids[row] != 0) & (predicted_ids[column] != 0)]
    return ObjectMatches(
        hits=np.array([np.count_nonzero(iou > t) for t in OBJECT_THRESHOLDS]),
        predicted=int(np.count_nonzero(predicted_ids)),
        true=int(np.count_nonzero(true_ids)),
    )


class ObjectCounts:
    """Objects found, missed and invented, summed over images.

    F1 is made of the sums, so that every object weighs alike, where the paper takes the mean over
    images. `object_scores` says when two objects match.

    Attributes:
        hits: [10] int64, the matched pairs at each of `OBJECT_THRESHOLDS`.
        objects: All predicted and all true objects.
    """

    def __init__(self):
        self.hits = np.zeros(len(OBJECT_THRESHOLDS), np.int64)
        self.objects = 0

    def add(
        self,
        predicted_labels: np.ndarray,
        true_labels: np.ndarray,
        kept: np.ndarray | None = None,
    ) -> None:
        """Counts the objects of one image, as `object_scores` takes them."""
        found = object_scores(predicted_labels, true_labels, kept)
        self.hits += found.hits
        self.objects += found.predicted + found.true

    def f1(self) -> dict[float, float]:
        """Returns F1 = 2 TP / (2 TP + FP + FN), in [0, 1], for each of `OBJECT_THRESHOLDS`.

        NaN if there are no objects.
        """
        return {
            threshold: 2 * int(hits) / self.objects if self.objects else float("nan")
            for threshold, hits in zip(OBJECT_THRESHOLDS, self.hits, strict=True)
        }

    def mean_f1(self) -> float:
        """Returns the mean of `f1` over the thresholds."""
        return float(np.mean(list(self.f1().values())))


# Published figures


def unet_medical_dice(
    probabilities: np.ndarray, truth: np.ndarray, *, hard_labels: bool = True
) -> float:
    """Returns the "Dice" of NVIDIA's UNet_Medical, for comparison with its published figures.

    The mean over both classes of

        (2 sum(p y) + 1e-6) / (sum(p^2) + sum(y^2) + 1e-6)

    on 388x388 pixels, to which probabilities and labels are resized linearly.

    Args:
        probabilities: [H, W, 2] float.
        truth: [H, W] class ids 0 and 1. A resized pixel with any share of `IGNORED` is left out.
        hard_labels: Whether a resized label is then 1 from 0.5 on and 0 below, as NVIDIA's code has
            it, or stays the share of the class in the pixel.

    Returns:
        The score, unitless, in [0, 1]; 1 is perfect.

    Raises:
        ValueError: If the shapes do not fit.

    Source: NVIDIA DeepLearningExamples, TensorFlow2/Segmentation/UNet_Medical,
        `dice_coef` in runtime/losses.py, here in float64.
    """
    if probabilities.shape != (*truth.shape, 2):
        raise ValueError(
            f"Expected `probabilities` {[*truth.shape, 2]}, as `truth` has {list(truth.shape)}. "
            f"Received {list(probabilities.shape)}."
        )
    predicted = _resized(probabilities)
    foreground = _resized(truth == 1)
    if hard_labels:
        foreground = np.where(foreground >= 0.5, 1.0, 0.0)
    kept = _resized(truth == IGNORED) == 0
    labels = np.stack([1 - foreground, foreground], -1)[kept]
    predicted = predicted[kept]
    hits, squares = (predicted * labels).sum(0), (predicted**2).sum(0) + (labels**2).sum(0)
    return float(((2 * hits + 1e-6) / (squares + 1e-6)).mean())


def _resized(values: np.ndarray) -> np.ndarray:
    return cv2.resize(values.astype(np.float64), _UNET_MEDICAL_SIZE, interpolation=cv2.INTER_LINEAR)


# Arguments


def _kept(kept: np.ndarray | None, **arrays: np.ndarray) -> np.ndarray:
    """Returns `kept`, or all pixels if it is None, once all shapes are equal."""
    if kept is None:
        _check_shapes(**arrays)
        return np.ones(next(iter(arrays.values())).shape, bool)
    _check_shapes(**arrays, kept=kept)
    return kept


def _check_shapes(**arrays: np.ndarray) -> None:
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"`{name}` {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"Expected equal shapes. Received {shapes}.")
