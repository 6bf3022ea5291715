# The self-teacher of the paper: two more BiFPN layers behind the student's three, and a copy of the student's head.
_base_ = "./effdet_d0.py"

model = dict(
    type="FRSKDEncoderDecoder",
    self_teacher=dict(
        type="FRSKDHead",
        # Switch to the authors' form of both BiFPN, on the command line:
        # --cfg-options model.neck.variant=published model.self_teacher.neck.variant=published_seg
        neck=dict(type="SelfTeacherNeck", in_channels=[64] * 6, channels=64, repeat=2, variant="efficientdet"),
        loss_distill=dict(type="FRSKDLoss", alpha=1.0, beta=50.0, temperature=1.0),
    ),
)

# The self-teacher reads all six levels.
find_unused_parameters = False
