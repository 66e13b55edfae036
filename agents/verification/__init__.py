"""Verification: claims with an expected and a measured value. Here a check's result, which every sub-room imports."""
