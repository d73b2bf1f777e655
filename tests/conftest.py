"""What every test shares: eight virtual CPU devices and one tokenizer learnt from real text."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all the time goes into compiling small programs, half of it into optimising what runs for a moment.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer of 1,024 pieces, learnt from Hamlet and from the language reference."""
    from gptjax.data.corpora import read_documents
    from gptjax.data.tokenizers import Tokenizer

    hamlet = [d.text for d in read_documents("shakespeare") if d.source == "shakespeare/hamlet"]
    return Tokenizer.train(hamlet + [d.text for d in read_documents("pydoc")], vocab_size=1024)
