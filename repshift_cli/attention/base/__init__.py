"""What back ends share: torch's own attention by kernel, the packages' functions, the swap."""
