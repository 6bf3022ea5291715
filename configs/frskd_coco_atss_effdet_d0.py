_base_ = [
    "./_base_/models/frskd_atss_effdet_d0.py",
    "./_base_/datasets/coco_512.py",
    "./_base_/schedules/frskd_coco_24e.py",
]
