_base_ = "./baseline_tinyimagenet_resnet18_cifar.py"

model = dict(mix=dict(type="CutMix", alpha=1.0))
