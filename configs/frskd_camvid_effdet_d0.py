_base_ = [
    "./_base_/models/frskd_effdet_d0.py",
    "./_base_/datasets/camvid.py",
    "./_base_/schedules/frskd_camvid_60e.py",
]

# From scratch; `pretrained=True` or `checkpoint='FILE'` starts from ImageNet weights.
model = dict(
    data_preprocessor=dict(size=_base_.crop_size), backbone=dict(pretrained=False), decode_head=dict(num_classes=11)
)
