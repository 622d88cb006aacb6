"""Measuring a comparison: from cases to steps, through interleaved rounds, to records."""
