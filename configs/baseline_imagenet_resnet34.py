_base_ = [
    "./_base_/models/resnet34.py",
    "./_base_/datasets/imagenet.py",
    "./_base_/schedules/classification_90e.py",
]

model = dict(student=dict(num_classes=_base_.num_classes), data_preprocessor=_base_.data_preprocessor)
