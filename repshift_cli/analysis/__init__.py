"""What follows from records: statistics, comparisons of runs, a case over time."""
