"""Parts for repshift from another package: a model family, an attention back end and a pruning method."""
