"""What is drawn, as data: one file per source, drawn as SVG in a page and as text in a terminal."""
