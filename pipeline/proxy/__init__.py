"""Small language models that stand in for a large one: trained alike on different corpora, they say which corpus is better.

tokenizer = train_tokenizer(texts, settings.vocabulary)
result = train(corpus, tokenizer, settings, seed, folder, held_out)
result.points[-1].bits_per_byte["specialist"]
"""
