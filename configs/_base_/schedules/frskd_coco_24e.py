# coco_24e plus the warm-up of the distillation over the first two thirds, as on VOC.
_base_ = "./coco_24e.py"

custom_hooks = _base_.custom_hooks + [
    dict(type="DistillWarmupHook", begin=_base_.max_epochs * 2 // 3, end=_base_.max_epochs, by_epoch=True)
]
