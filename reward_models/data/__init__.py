"""Preference pairs, human ratings and reviews, as they are read and split."""
