"""Datasets, augmentation and batches: all that happens to the data before the network.

`datasets` is the table of names, `sources.load` reads one of them into splits, `batches` turns a split into batches.
Nothing here knows recipes: all arguments are plain values.
"""
