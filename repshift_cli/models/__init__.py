"""One file per model family: how to build it, where its blocks are, which tokens are protected."""
