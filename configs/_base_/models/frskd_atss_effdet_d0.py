# Two more BiFPN layers on P3-P7 behind the student's three, and a copy of its head. The paper has no detector: alpha
# and beta are those of its segmentors, where this starts from.
_base_ = "./atss_effdet_d0.py"

model = dict(
    type="FRSKDSingleStage",
    self_teacher=dict(
        type="FRSKDDenseHead",
        neck=dict(type="SelfTeacherNeck", in_channels=[64] * 5, channels=64, repeat=2, variant="efficientdet"),
        loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
    ),
)
