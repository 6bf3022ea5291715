# As effdet_d0 with EfficientNet-B1 and 88 channels; 512 px, P2-P7 and three layers stay.
_base_ = "./effdet_d0.py"

model = dict(
    backbone=dict(model_name="tf_efficientnet_b1.aa_in1k"), neck=dict(channels=88), decode_head=dict(in_channels=88)
)
