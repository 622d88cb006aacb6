"""What several questions need: blocks seen from within, attention by rows, ranks, the effect on the output."""
