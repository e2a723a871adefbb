"""The Hugging Face Hub: what is sent there, and what is brought back."""
