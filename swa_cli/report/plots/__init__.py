"""Draw the pictures of a run in one style.

Each `draw` function takes plain values and writes a PNG or an SVG. The same values give the same picture, whatever
matplotlib's settings are. Things that differ in color also differ in dash, marker, hatch or label.
"""
