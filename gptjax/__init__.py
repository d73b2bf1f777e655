"""gptjax: the road from GPT to ChatGPT in JAX."""

__version__ = "0.1.0"
