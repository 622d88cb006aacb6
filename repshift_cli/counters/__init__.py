"""Instruments that count HBM traffic, one file each, what they share, and how they are calibrated before use."""
