# voc_60e plus the paper's warm-up: no distillation for 40 epochs, then alpha and beta times exp(-5 (1 - t)^2).
_base_ = "./voc_60e.py"

custom_hooks = _base_.custom_hooks + [
    dict(type="DistillWarmupHook", begin=40, end=_base_.max_epochs, by_epoch=True),
    # Also scores the self-teacher at each validation; enabled=False saves that time.
    dict(type="SelfTeacherValidationHook", enabled=True),
]
