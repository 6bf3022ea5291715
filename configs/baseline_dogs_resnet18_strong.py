_base_ = [
    "./_base_/models/resnet18.py",
    "./_base_/datasets/dogs.py",
    "./_base_/schedules/classification_200e_strong.py",
]

model = dict(student=dict(num_classes=_base_.num_classes), data_preprocessor=_base_.data_preprocessor)
