# As frskd_effdet_d0 with 88 channels.
_base_ = "./effdet_d1.py"

model = dict(
    type="FRSKDEncoderDecoder",
    self_teacher=dict(
        type="FRSKDHead",
        neck=dict(type="SelfTeacherNeck", in_channels=[88] * 6, channels=88, repeat=2, variant="efficientdet"),
        loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
    ),
)

find_unused_parameters = False
