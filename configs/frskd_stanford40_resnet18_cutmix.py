_base_ = "./frskd_stanford40_resnet18.py"

model = dict(mix=dict(type="CutMix", alpha=1.0))
