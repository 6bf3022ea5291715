# default_runtime for classifiers: it needs neither mmcv nor mmseg.
_base_ = "./default_runtime.py"

default_scope = "mmengine"
visualizer = dict(type="Visualizer")

default_hooks = dict(
    _delete_=True,
    # Losses and times stay on the device until they are logged.
    runtime_info=dict(type="DeferredInfoHook"),
    timer=dict(type="DeferredTimerHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=3, save_best="top1", rule="greater"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # Stops at a loss that is NaN or infinite, before a checkpoint holds what came of it.
    finite_loss=dict(type="FiniteLossHook"),
)

custom_hooks = [
    dict(type="StepSeedHook"),
    # Scores the teacher beside the student, where the method has one; enabled=False saves that time.
    dict(type="SelfTeacherValidationHook", enabled=True),
    # WORK_DIR/result.json: every epoch's scores, the last one and the best one.
    dict(type="BestAndLastHook", metric="top1"),
    # Tells the method how far training is: weights that follow a schedule (ONE, PS-KD), memory of an epoch (DLB).
    dict(type="MethodProgressHook"),
    # WORK_DIR/attention and TensorBoard: attention maps of student and self-teacher, in the course of the training.
    dict(type="ClassifierAttentionPictureHook", num_images=2, interval=25),
]
