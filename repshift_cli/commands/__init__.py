"""One file per command: parse, plan, run, store, render."""
