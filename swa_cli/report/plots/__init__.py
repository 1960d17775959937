"""The pictures of a run, one file each; all are drawn in the one style of `style.py`.

Each file has a function `draw` that takes plain values and writes a PNG or an SVG. The same values give the same
picture, whatever matplotlib's settings are. What differs in colour differs in dash, marker, hatch or label too.
"""
