_base_ = [
    "./_base_/models/resnet18_cifar.py",
    "./_base_/datasets/tinyimagenet.py",
    "./_base_/schedules/classification_200e_strong.py",
]

model = dict(student=dict(num_classes=_base_.num_classes), data_preprocessor=_base_.data_preprocessor)
