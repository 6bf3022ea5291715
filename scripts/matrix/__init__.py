"""The tests on other versions than those of constraints.txt: ``python -m scripts.matrix`` (``make test-matrix``)."""
