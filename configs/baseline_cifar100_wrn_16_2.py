_base_ = [
    "./_base_/models/wrn_16_2.py",
    "./_base_/datasets/cifar100.py",
    "./_base_/schedules/classification_200e.py",
]

model = dict(student=dict(num_classes=_base_.num_classes), data_preprocessor=_base_.data_preprocessor)
