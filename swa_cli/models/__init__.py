"""Networks by name (`build_model.py`) and the zoo, one file per architecture."""
