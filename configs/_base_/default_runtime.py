# What every run shares: logs with ETA, TensorBoard, checkpoints that survive a crash, a resume that changes nothing.
# Not an import statement: mmengine 0.10.7 may take one of the standard library for the sign of a lazy config.
_find_spec = __import__("importlib.util", fromlist=["find_spec"]).find_spec

custom_imports = dict(imports=["frskd_plugin"], allow_failed_imports=False)
default_scope = "mmseg"

# 'gloo' on a machine without a GPU; tools/train.py chooses that by itself.
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
randomness = dict(seed=0, deterministic=False)

# TensorBoard files are written where the package tensorboard is installed; text and JSON logs always.
vis_backends = [dict(type="LocalVisBackend")]
if _find_spec("tensorboard"):
    vis_backends.append(dict(type="TensorboardVisBackend"))
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")

log_processor = dict(by_epoch=True)
log_level = "INFO"
load_from = None
resume = False

default_hooks = dict(
    # Losses and times stay on the device until they are logged.
    runtime_info=dict(type="DeferredInfoHook"),
    timer=dict(type="DeferredTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=3, save_best="mIoU", rule="greater"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # Stops at a loss that is NaN or infinite, before a checkpoint holds what came of it.
    finite_loss=dict(type="FiniteLossHook"),
    visualization=dict(type="SegVisualizationHook"),
)

custom_hooks = [
    dict(type="StepSeedHook"),
    # Image, truth, prediction and attention maps in WORK_DIR/attention and TensorBoard.
    dict(type="AttentionPictureHook", num_images=2, interval=10),
]
