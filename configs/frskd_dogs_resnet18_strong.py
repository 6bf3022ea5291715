_base_ = "./baseline_dogs_resnet18_strong.py"

model = dict(method=dict(name="frskd", temperature=4.0, width=2, **_base_.frskd))
