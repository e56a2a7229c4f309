"""Proxy models: small language models trained the same way on different corpora, to find out which corpus is better.

    tokenizer = train_tokenizer(texts, settings.vocabulary)
    tokens_N = encode_corpus(tokenizer, texts, settings.tokens)
    result = train(tokens_N, tokenizer, settings, seed, folder, held_out)
    result.points[-1].bits_per_byte["specialist"]

The package does not depend on arms or pipelines. It may import the layers from `clustering` and `sources` downwards, but no stage.
`model`, `optimiser` and `training` import torch, so other packages import them inside functions.
"""
