"""Networks by name (`build_model.py`, `libraries.py`) and the zoo, one file per architecture."""
