# CamVid, 11 classes, 480x360, in PASCAL VOC layout (JPEGImages, SegmentationClass, ImageSets/Segmentation).
data_root = "data/CamVid"  # tools/train.py --data-root sets it
crop_size = (360, 480)  # height, width: whole images

train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations", num_classes=11),
    dict(type="RandomResize", scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations", num_classes=11),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="SeededDataset",
        dataset=dict(
            type="CamVidDataset",
            data_root=data_root,
            ann_file="ImageSets/Segmentation/train.txt",
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CamVidDataset", data_root=data_root, ann_file="ImageSets/Segmentation/val.txt", pipeline=test_pipeline
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CamVidDataset", data_root=data_root, ann_file="ImageSets/Segmentation/test.txt", pipeline=test_pipeline
    ),
)

val_evaluator = dict(type="SelfTeacherIoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
