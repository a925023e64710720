"""Small statistics for reports."""

from math import sqrt


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson, 1927); (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    share, spread = hits / n, z * z / n
    centre = share + spread / 2
    half = z * sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
