"""What commands share: options, progress, outputs, listings, revisions."""
