"""One file per pruning method: what it needs to see, how it scores or cuts."""
