"""Plateaus of sorted scores, one patch after another."""

import math
import statistics


def noisy_map(visible, score, length):
    """Returns mean and standard error of each patch of one image."""
    means, errors = [], []
    for patch in range(length):
        found = [
            float(value)
            for places, values in zip(visible, score)
            for place, value in zip(places, values)
            if place == patch
        ]
        means.append(statistics.fmean(found))
        errors.append(statistics.stdev(found) / math.sqrt(len(found)))
    return means, errors


def plateaus_of(means, errors, bins):
    """Returns (flat, width, score) of each part of one image's order."""
    order = sorted(range(len(means)), key=lambda patch: -means[patch])
    parts, start = [], 0
    for part in range(bins):
        size = (len(order) - 1) // bins + (part < (len(order) - 1) % bins)
        parts.append(order[start : start + size])
        start += size

    def near(a, b):
        return abs(means[a] - means[b]) < math.sqrt(errors[a] ** 2 + errors[b] ** 2)

    low, high = min(means), max(means)
    rows = []
    for part in parts:
        behind = [order[order.index(patch) + 1] for patch in part]
        rows.append(
            (
                statistics.fmean(near(a, b) for a, b in zip(part, behind)),
                statistics.fmean(sum(near(a, b) for b in order if b != a) for a in part),
                statistics.fmean((means[patch] - low) / (high - low) for patch in part),
            )
        )
    return rows
