"""Scores of masks: areas of each image -> intersection over union and its company.

Pure functions, numpy in, numbers out. Flow: ``areas(prediction, mask, C)`` of each image, summed
over all of them -> ``mean_iou`` and the other scores, which take the sum.

Shapes: C classes, H x W pixels.
"""

from __future__ import annotations

import math

from silc_bench.datasets.dataset import ignore_of
from silc_bench.later import np

BOUNDARY_SHARE = 0.02  # of the image's diagonal


def areas(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels per class of one image: intersection, predicted, true.

    Prediction and mask [H, W] -> [3, C] int64.

    Pixels whose mask is ``ignore_of(mask)`` count nowhere. Areas of many images add up; the
    scores below take the sum.
    """
    ignored = mask == ignore_of(mask)

    # int32: a mask is uint8 or uint16, and a product of two classes would overflow it
    truth = np.where(ignored, 0, mask).astype(np.int32)
    guess = np.where(ignored, 0, prediction).astype(np.int32)
    highest = max(truth.max(initial=0), guess.max(initial=0))
    assert highest < num_classes, "a class index beyond num_classes"

    # one number for each pair (true, predicted), and one more for what is ignored
    num_pairs = num_classes**2
    pairs = np.where(ignored, num_pairs, truth * num_classes + guess)
    counts = np.bincount(pairs.ravel(), minlength=num_pairs + 1)[:-1]
    confusion = counts.reshape(num_classes, num_classes)
    return np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)])


def boundary_areas(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels near the contours of the classes of one image: in both, predicted, true.

    Prediction and mask [H, W] -> [3, C] int64.

    Boundary IoU (Cheng et al., 2103.16562, eq. 2): of each class only those of its pixels count
    that lie within d of its contour, where d is 2 % of the image's diagonal, rounded, 1 at least,
    in steps to any of eight neighbours, and the image's border is contour. The scores below take
    the sum over images, as of ``areas``. What is not scored is put into the prediction too: its
    edge is then contour of both, and a prediction that is right elsewhere scores 1.
    """
    ignored = mask == ignore_of(mask)
    distance = max(1, round(BOUNDARY_SHARE * math.hypot(*mask.shape)))

    truth = mask.astype(np.int32)
    guess = np.where(ignored, mask, prediction).astype(np.int32)
    true_band = _near_contours(truth, distance) & ~ignored
    guessed_band = _near_contours(guess, distance) & ~ignored
    in_both = true_band & guessed_band & (truth == guess)
    counted = (truth[in_both], guess[guessed_band], truth[true_band])
    return np.stack([np.bincount(classes, minlength=num_classes) for classes in counted])


def class_iou(areas: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> [..., C] intersection over union.

    NaN for a class that is neither true nor predicted anywhere.
    """
    intersection, predicted, truth = _apart(areas)
    return _ratio(intersection, predicted + truth - intersection)


def mean_iou(areas: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> [...] mIoU.

    A class absent from truth *and* prediction is not averaged; one only predicted counts as 0.
    """
    return _mean_of_known(class_iou(areas))


def pixel_accuracy(areas: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> [...] fraction of scored pixels whose class is right."""
    intersection, _, truth = _apart(areas)
    return _ratio(intersection.sum(-1), truth.sum(-1))


def mean_class_accuracy(areas: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> [...] mean over the classes of the truth of the fraction of pixels found."""
    intersection, _, truth = _apart(areas)
    return _mean_of_known(_ratio(intersection, truth))


def mean_class_rate(counts: np.ndarray) -> np.ndarray:
    """[..., 2, C] -> [...] mean over classes of hits / asked.

    The counts are of both, for each class; a class that was never asked for is not averaged.
    """
    return _mean_of_known(_ratio(*_apart(counts)))


def _apart(counts: np.ndarray) -> np.ndarray:
    """[..., K, C] -> float64 [K, ..., C]."""
    return np.moveaxis(np.asarray(counts, dtype=np.float64), -2, 0)


def _near_contours(labels: np.ndarray, distance: int) -> np.ndarray:
    """[H, W] -> bool: whether another label, or the border of the image, is near.

    Near means: among the pixels up to ``distance`` rows and columns away.
    """
    near = np.ones(labels.shape, dtype=bool)
    inner = slice(distance, -distance)  # an image that is too small has no pixel inside

    # a square holds one label if each of its rows does, and its middle column: two passes along
    # the axes instead of one over all pixels of the square
    if min(labels.shape) > 2 * distance:
        rows = _any_of(labels[:, 1:] != labels[:, :-1], 2 * distance, axis=1)
        column = labels[1:, inner] != labels[:-1, inner]
        differs_in_rows = _any_of(rows, 2 * distance + 1, axis=0)
        differs_in_column = _any_of(column, 2 * distance, axis=0)
        near[inner, inner] = differs_in_rows | differs_in_column
    return near


def _any_of(flags: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Is any of ``count`` neighbours along ``axis`` set? As many places as windows that fit."""
    # how many are set before each place: a window holds none where both its ends say the same
    before = np.zeros(np.add(flags.shape, np.arange(2) == axis), dtype=np.int32)
    along = before.swapaxes(0, axis)  # a view, with the axis first
    np.cumsum(flags, axis=axis, out=along[1:].swapaxes(0, axis))
    return (along[count:] != along[:-count]).swapaxes(0, axis)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """[..., C] -> [...], NaN where no class is known."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1).astype(np.float64))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
