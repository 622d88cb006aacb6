"""One file per attention back end."""
