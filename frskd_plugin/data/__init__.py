"""Data of small and large images, read and mixed without OpenMMLab: `prepare_data` and own loops need none."""
