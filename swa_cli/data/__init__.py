"""The data room: where batches come from.

`sources` turns a dataset's name into splits, `batches` turns a split into batches, `augment` works on
whole batches. Nothing here knows recipes: all arguments are plain values.
"""
