"""The starter pack: facts, passages, safety requests and general rows, all written for this project; `pack.py` reads them."""
