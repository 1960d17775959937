"""Tables of the terminal: rows per epoch, scores, seeds and searches."""
