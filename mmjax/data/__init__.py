"""Data: sources, tokenizer, processor, pipeline (see mmjax/README.md)."""
