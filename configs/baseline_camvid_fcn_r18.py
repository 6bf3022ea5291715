_base_ = [
    "./_base_/models/fcn_r18.py",
    "./_base_/datasets/camvid.py",
    "./_base_/schedules/camvid_60e.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size), decode_head=dict(num_classes=11), auxiliary_head=dict(num_classes=11)
)
