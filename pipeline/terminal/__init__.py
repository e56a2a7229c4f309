"""What a person reads in a terminal: `output` owns the streams, `formatting` writes amounts. It imports nothing of ours."""
