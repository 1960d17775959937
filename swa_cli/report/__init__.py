"""What a person sees: the terminal, the error blocks and the pictures of a run.

Takes plain values (dicts, floats, strings) and knows nothing of torch or of the command line. Percent exists
only in this room.
"""
