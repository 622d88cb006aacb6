"""Which tokens stayed, to look at: a picture, a page, lines of a terminal."""
