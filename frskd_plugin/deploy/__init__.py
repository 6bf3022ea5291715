"""Files of the trained student for other runtimes, ONNX and ``torch.export``, each checked by running it."""
