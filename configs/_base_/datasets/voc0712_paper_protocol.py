# The paper's data: VOC2012 trainval whole, with the images of the VOC2007 test set that it contains.
# `python tools/prepare_voc.py DEVKIT --paper-protocol` writes these lists. Name the protocol with every result.
_base_ = "./voc0712.py"

train_dataloader = _base_.train_dataloader
for _part in train_dataloader["dataset"]["dataset"]["datasets"]:
    _part["ann_file"] = _part["ann_file"].replace("frskd_train.txt", "frskd_train_paper_protocol.txt")
del _part
