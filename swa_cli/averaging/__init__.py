"""Averages of weights, and the BatchNorm statistics that belong to them.

`average.py` keeps a running average of a model's weights, with `swag.py` a Gaussian around it; `batchnorm.py`
measures the statistics that such a weight set needs before it is scored or shipped, as `pooled.py` or `exact.py` does
it. All take plain arguments and can be used without the rest.
"""
