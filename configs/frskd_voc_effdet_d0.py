_base_ = [
    "./_base_/models/frskd_effdet_d0.py",
    "./_base_/datasets/voc0712.py",
    "./_base_/schedules/frskd_voc_60e.py",
]
