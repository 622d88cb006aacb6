"""One file per quantity measured, each in a pass of its own."""
