"""Evaluation of reward models: accuracy, calibration, report and an independent judge."""
