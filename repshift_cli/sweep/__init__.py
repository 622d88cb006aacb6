"""What is asked for: axes, how they are written, profiles, and the cases that come of them."""
