_base_ = [
    "./_base_/models/atss_effdet_d0.py",
    "./_base_/datasets/coco_512.py",
    "./_base_/schedules/coco_24e.py",
]
