_base_ = "./frskd_tinyimagenet_resnet18_cifar.py"

model = dict(mix=dict(type="Mixup", alpha=0.2))
