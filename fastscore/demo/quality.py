"""Three questions to a set of samples, each answered against data that were held out of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

Array = NDArray[np.float64]

PRESENT = 0.03  # share of the samples from which a class counts as there
FOLDS = 5


@dataclass(frozen=True)
class Quality:
    """How samples compare with held-out data.

    Attributes:
        classifier_accuracy: Of a support vector machine trained on the training data, on the held-out data. It is the
            judge of the next two.
        class_shares: Share of the samples that it puts in each class.
        classes_present: How many classes have at least 3% of the samples.
        distance_ratio: Median distance from a sample to its nearest training point, over the same from a held-out
            point. About 1 for new draws of the data's law; far below 1, the training data were memorised.
        memorised_share: Share of the samples nearer to a training point than 99% of the held-out points are. About
            0.01 for new draws.
        two_sample_accuracy: Cross-validated accuracy of classifiers that learn to tell samples from held-out data
            (as many of either): 0.5 if they cannot, 1 if they always can.
        two_sample_baseline: The same between training and held-out data: what two draws of one law give.
    """

    classifier_accuracy: float
    class_shares: list[float]
    classes_present: int
    distance_ratio: float
    memorised_share: float
    two_sample_accuracy: dict[str, float]
    two_sample_baseline: dict[str, float]


def nearest_distances(points: Array, reference: Array) -> Array:
    """Euclidean distance from each of the points `[N, D]` to the nearest row of reference `[M, D]`."""
    distances: Array = NearestNeighbors(n_neighbors=1).fit(reference).kneighbors(points)[0][:, 0]
    return distances


def two_sample_accuracy(first: Array, second: Array, seed: int) -> dict[str, float]:
    """Cross-validated accuracy of two classifiers at telling the rows of `first` from the rows of `second`.

    As many rows of either are used, so that guessing gives 1/2 (Lopez-Paz and Oquab, Revisiting Classifier Two-Sample
    Tests, ICLR 2017).
    """
    n = min(len(first), len(second))
    points = np.concatenate([first[:n], second[:n]])
    origin = np.repeat([0, 1], n)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    judges: dict[str, Any] = {
        "support_vectors": SVC(C=10.0),
        "random_forest": RandomForestClassifier(100, random_state=seed),
    }
    return {name: float(cross_val_score(judge, points, origin, cv=folds).mean()) for name, judge in judges.items()}


def assess(
    samples: Array,
    train: Array,
    train_labels: NDArray[np.int64],
    held_out: Array,
    held_out_labels: NDArray[np.int64],
    seed: int = 0,
) -> Quality:
    """Judges samples `[N, D]` by data that were trained on and data that were held out."""
    judge = SVC(C=10.0).fit(train, train_labels)
    n_classes = int(train_labels.max()) + 1
    shares = np.bincount(judge.predict(samples), minlength=n_classes) / len(samples)
    of_samples, of_held_out = nearest_distances(samples, train), nearest_distances(held_out, train)
    return Quality(
        classifier_accuracy=float(judge.score(held_out, held_out_labels)),
        class_shares=shares.tolist(),
        classes_present=int((shares >= PRESENT).sum()),
        distance_ratio=float(np.median(of_samples) / np.median(of_held_out)),
        memorised_share=float((of_samples < np.quantile(of_held_out, 0.01)).mean()),
        two_sample_accuracy=two_sample_accuracy(samples, held_out, seed),
        two_sample_baseline=two_sample_accuracy(train, held_out, seed),
    )
