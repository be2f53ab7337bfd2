"""Where batches come from: corpora, tokenizers, packed tokens, corruption and streams."""
