_base_ = [
    "./_base_/models/effdet_d0.py",
    "./_base_/datasets/voc0712.py",
    "./_base_/schedules/voc_60e.py",
]
