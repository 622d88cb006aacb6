"""Base against head: rounds in fresh processes, the verdict over them, noise and thresholds."""
