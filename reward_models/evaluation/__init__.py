"""How good a reward model is: accuracy, calibration, report, an independent judge."""
