"""Which layers, which keep, which score: found by measurement on calibration inputs, confirmed on others."""
