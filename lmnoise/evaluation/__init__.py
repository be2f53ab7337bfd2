"""What is measured on given parameters: `probe(params, batch, key) -> {metric: value}`."""
