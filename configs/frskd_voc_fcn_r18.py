# What turns a config of mmsegmentation into an FRSKD one: these lines, and frskd_plugin in custom_imports.
_base_ = "./baseline_voc_fcn_r18.py"

model = dict(
    type="FRSKDEncoderDecoder",
    self_teacher=dict(
        type="FRSKDHead",
        neck=dict(type="SelfTeacherNeck", in_channels=[64, 128, 256, 512], width=1),
        loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
    ),
)

custom_hooks = _base_.custom_hooks + [
    dict(type="DistillWarmupHook", begin=40, end=60, by_epoch=True),
    dict(type="SelfTeacherValidationHook", enabled=True),
]
