# CamVid at half its size, for machines without a GPU; predictions are scored at the full 480x360.
_base_ = "./camvid.py"

crop_size = (144, 192)  # height, width
image_scale = (240, 180)  # width, height

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations", num_classes=11),
    dict(type="RandomResize", scale=image_scale, ratio_range=(0.75, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    dict(type="LoadCheckedAnnotations", num_classes=11),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(num_workers=1, dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
