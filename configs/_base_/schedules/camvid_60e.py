# CamVid is not in the paper: its VOC schedule, without accumulation, is where these numbers start from.
_base_ = "./voc_60e.py"

optim_wrapper = dict(accumulative_counts=1)
