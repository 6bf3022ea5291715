_base_ = "./baseline_tinyimagenet_wrn_16_2.py"

model = dict(method=dict(name="frskd", temperature=4.0, width=2, schedule="constant", **_base_.frskd))
