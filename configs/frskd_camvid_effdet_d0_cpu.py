_base_ = [
    "./_base_/models/frskd_effdet_d0.py",
    "./_base_/datasets/camvid_240x180.py",
    "./_base_/schedules/frskd_camvid_20e.py",
]

# What README shows: about half an hour on one CPU core, from scratch.
model = dict(
    data_preprocessor=dict(size=_base_.crop_size), backbone=dict(pretrained=False), decode_head=dict(num_classes=11)
)
