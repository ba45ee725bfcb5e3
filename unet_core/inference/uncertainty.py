"""How uncertain a prediction is, pixel by pixel.

entropy(probabilities)                  # [..., C] -> [...], 0 certain, 1 all classes alike
disagreement(of_networks)               # [N, ..., C] -> [...], 0 all agree
"""

from __future__ import annotations

import numpy as np


def entropy(probabilities: np.ndarray, overlapping: bool = False) -> np.ndarray:
    """Returns the entropy of class probabilities, divided by that of equal ones.

        -sum_c p_c ln p_c / ln C

    Args:
        probabilities: [..., C] float, summing to 1; of several networks their mean.
        overlapping: Whether classes may overlap: the entropy is then the most of any class, of its
            being there or not.

    Returns:
        [...] float32 in [0, 1].

    Source: predictive entropy, as of averaged networks in Lakshminarayanan et al. 2017, Simple and
        Scalable Predictive Uncertainty Estimation using Deep Ensembles, arXiv:1612.01474.
    """
    p = np.asarray(probabilities, np.float32)
    if overlapping:
        return entropy(np.stack([p, 1 - p], -1)).max(-1)
    # 0 ln 0 is 0.
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    return np.clip(-terms.sum(-1) / np.float32(np.log(p.shape[-1])), 0, 1)


def disagreement(of_networks: np.ndarray) -> np.ndarray:
    """Returns the standard deviation over networks of the probability, the most of any class.

        max_c sqrt(sum_n (p_nc - mean_n p_nc)^2 / N)

    Kendall et al. take the mean over the classes; the maximum does not shrink with their number,
    and of two classes both have the same.

    Args:
        of_networks: [N, ..., C] float, the probabilities of each network.

    Returns:
        [...] float32 in [0, 0.5]; 0.5 if half of the networks are certain of one class and half of
        another.

    Source: Kendall et al. 2015, Bayesian SegNet, arXiv:1511.02680, there over dropout samples.
    """
    return np.std(np.asarray(of_networks, np.float32), axis=0).max(-1)
