"""What a person asks for besides training."""
