"""What timm is told about the CIFAR networks: input 3x32x32, CIFAR-100 statistics, no published weights."""

from __future__ import annotations

from typing import Any

CIFAR_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR_STD = (0.2673, 0.2564, 0.2762)


def cifar_cfg(first_conv: str, pool_size: tuple[int, int]) -> dict[str, Any]:
    """A timm ``pretrained_cfg`` of a network for 32x32 images; its classifier is called ``fc``."""
    return {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": pool_size,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": first_conv,
        "classifier": "fc",
        "license": "apache-2.0",
    }
