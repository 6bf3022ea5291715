_base_ = "./frskd_mit67_resnet18.py"

model = dict(mix=dict(type="Mixup", alpha=0.3))
