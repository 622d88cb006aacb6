"""The page: figures drawn as SVG, tables that sort and filter, and what holds them together in one HTML file."""
