# camvid_20e plus the warm-up of the distillation over the first half: twenty epochs are few.
_base_ = "./camvid_20e.py"

custom_hooks = _base_.custom_hooks + [
    dict(type="DistillWarmupHook", begin=_base_.max_epochs // 2, end=_base_.max_epochs, by_epoch=True),
    dict(type="SelfTeacherValidationHook", enabled=True),
]
