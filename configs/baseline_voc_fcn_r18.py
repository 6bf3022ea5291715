_base_ = [
    "./_base_/models/fcn_r18.py",
    "./_base_/datasets/voc0712.py",
    "./_base_/schedules/voc_60e.py",
]
