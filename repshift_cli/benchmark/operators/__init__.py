"""Attention operators measured by the same runner: which can be, how one becomes a step, what is measured of it."""
