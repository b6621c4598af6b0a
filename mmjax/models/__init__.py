"""The models: one transformer block, and the towers, fusion, decoder and heads that are made of it."""
