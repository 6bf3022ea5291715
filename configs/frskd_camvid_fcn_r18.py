# What turns a config of mmsegmentation into an FRSKD one: these lines, and frskd_plugin in custom_imports.
_base_ = "./baseline_camvid_fcn_r18.py"

model = dict(
    type="FRSKDEncoderDecoder",
    self_teacher=dict(
        type="FRSKDHead",
        neck=dict(type="SelfTeacherNeck", in_channels=[64, 128, 256, 512], width=1),
        loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
    ),
)

custom_hooks = _base_.custom_hooks + [
    dict(type="DistillWarmupHook", begin=_base_.max_epochs * 2 // 3, end=_base_.max_epochs, by_epoch=True),
    dict(type="SelfTeacherValidationHook", enabled=True),
]
