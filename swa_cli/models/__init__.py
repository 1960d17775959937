"""Networks by name, and the zoo: one file per architecture."""
