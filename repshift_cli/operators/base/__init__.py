"""What operators share: their description, masks, counts, the float64 reference, inputs, and the suite's plan."""
