# Laid over a classifier's config by --recipe mixup (Table 8); the strength is that of the data set.
model = dict(mix=dict(type="Mixup", alpha=_base_.mixup_alpha))
