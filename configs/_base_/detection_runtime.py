# default_runtime for detectors. They need mmdetection, and an mmcv with compiled operators (make test-mmdet has both).
_base_ = "./default_runtime.py"

default_scope = "mmdet"
visualizer = dict(type="DetLocalVisualizer")

default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP"), visualization=dict(type="DetVisualizationHook"))
custom_hooks = [dict(type="StepSeedHook")]
