"""Builders that families share, by kind of model."""
