"""What this computer has, read without changing anything; whatever is missing says why."""
