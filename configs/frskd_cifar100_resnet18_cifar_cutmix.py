_base_ = "./frskd_cifar100_resnet18_cifar.py"

model = dict(mix=dict(type="CutMix", alpha=1.0))
