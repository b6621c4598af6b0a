"""Public weights: Hugging Face safetensors folders <-> our parameters, a file a family, both ways from one table."""
