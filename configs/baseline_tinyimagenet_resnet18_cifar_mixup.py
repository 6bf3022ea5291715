_base_ = "./baseline_tinyimagenet_resnet18_cifar.py"

model = dict(mix=dict(type="Mixup", alpha=0.2))
