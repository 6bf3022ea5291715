"""What a wide ResNet's name says: WRN-depth-k."""

from __future__ import annotations


def num_blocks(depth: int) -> int:
    """Blocks in each of the three groups.

    >>> num_blocks(16)
    2

    Raises:
        ValueError: ``depth`` is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth={depth} of a wide ResNet must be 6n + 4: 10, 16, 22, 28, ...")
    return (depth - 4) // 6


def group_channels(k: int) -> tuple[int, int, int]:
    """Channels of the three groups.

    >>> group_channels(2)
    (32, 64, 128)

    Raises:
        ValueError: ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} of a wide ResNet (its width) must be at least 1.")
    return 16 * k, 32 * k, 64 * k
