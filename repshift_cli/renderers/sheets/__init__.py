"""The views that renderers show: runs, profiles, gates, histories, comparisons."""
