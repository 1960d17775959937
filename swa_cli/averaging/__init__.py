"""Weight averaging and the BatchNorm statistics that averages need.

`average.py` keeps a running average of a model's weights, of a kind that `kinds.py` declares; `swag.py` adds a Gaussian
around it. `batchnorm.py` measures the statistics that such weights need before they are evaluated or shipped. All of it
takes plain arguments and works without the rest of the package.
"""
