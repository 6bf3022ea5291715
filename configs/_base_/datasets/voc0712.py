# PASCAL VOC: trains on VOC2007 + VOC2012 trainval, validates on VOC2007 test (section 4.2 of the paper).
# `python tools/prepare_voc.py DEVKIT` writes the training lists. Switch: voc0712_paper_protocol.py in place of this
# file trains on the paper's lists, which hold some of the test images.
data_root = "data/VOCdevkit"  # holds VOC2007 and VOC2012; tools/train.py --data-root sets it
crop_size = (512, 512)

# The paper gives no augmentation but "most of the settings" of Heo et al. 2019: shorter side at 0.5 to 2 times the
# crop, random crop, flip (their occasional Gaussian blur is left out). 512 px is the authors' code's.
train_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="LoadCheckedAnnotations", num_classes=21),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
# The paper does not say how it tests: the whole image, shorter side 512, scored at its own size.
test_pipeline = [
    dict(type="LoadCheckedImage"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadCheckedAnnotations", num_classes=21),  # after Resize: the truth keeps its size
    dict(type="PackSegInputs"),
]

# Batch 16; the schedule accumulates two of them to the paper's 32. On N GPUs: batch_size=16 / N.
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="SeededDataset",
        dataset=dict(
            type="ConcatDataset",
            datasets=[
                dict(
                    type="CheckedPascalVOCDataset",
                    data_root=data_root,
                    data_prefix=dict(img_path=f"{year}/JPEGImages", seg_map_path=f"{year}/SegmentationClass"),
                    ann_file=f"{year}/ImageSets/Segmentation/frskd_train.txt",
                    pipeline=train_pipeline,
                )
                for year in ("VOC2007", "VOC2012")
            ],
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CheckedPascalVOCDataset",
        data_root=data_root,
        data_prefix=dict(img_path="VOC2007/JPEGImages", seg_map_path="VOC2007/SegmentationClass"),
        ann_file="VOC2007/ImageSets/Segmentation/test.txt",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# IoUMetric; reports the self-teacher's mIoU too where SelfTeacherValidationHook is on.
val_evaluator = dict(type="SelfTeacherIoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
