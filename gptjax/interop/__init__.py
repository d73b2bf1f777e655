"""Models from elsewhere and to elsewhere: GGUF files and Hugging Face folders."""
