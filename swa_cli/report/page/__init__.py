"""`swa report`: runs as one HTML file that needs nothing else: no network, no other file, no script from elsewhere.

`document.py` puts it together of plain values; whatever comes from a recipe or a file is escaped where it is written.
"""
