"""What several test files use: servers that stand in for others, small corpora, planted runs, random trees."""
