"""Is a corpus better? One proxy model for each arm and seed, trained alike, scored on held-out text."""
