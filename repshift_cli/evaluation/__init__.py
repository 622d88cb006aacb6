"""Accuracy on labelled data: data sets, tasks, and the loop that shows every variant the same samples."""
