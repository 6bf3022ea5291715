"""Trains one epoch with each of some methods in a process of a group; its launcher's variables come from outside.

python tests/helpers/train_methods.py FOLDER DATA_ROOT METHOD...
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmengine.runner import Runner

import frskd_plugin  # noqa: F401
from frskd_plugin.mmengine.distributed import end_distributed, init_distributed, prepare_distributed
from frskd_plugin.mmengine.method_data import provide_method_data, set_method
from tests.helpers.tiny_classification import tiny_config


def main(folder: Path, data_root: Path, *methods: str) -> None:
    """Leave the weights of each rank in ``FOLDER/METHOD/rank_RANK.pth``."""
    init_distributed("pytorch")
    for method in methods:
        config = tiny_config(data_root, "baseline_cifar100_wrn_16_2", epochs=1, train_dataloader__batch_size=4)
        config.custom_hooks = [hook for hook in config.custom_hooks if hook.type != "ClassifierAttentionPictureHook"]
        config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
        config.launcher, config.work_dir = "pytorch", str(folder / method)
        config.experiment_name = config.visualizer.name = method
        set_method(config, method, {})
        provide_method_data(config)
        prepare_distributed(config)
        Runner.from_cfg(config).train()
    end_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
