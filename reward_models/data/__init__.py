"""Reading and splitting preference pairs, human ratings and reviews."""
