"""What quantised weights cost on held-out text: bytes and perplexity of a trained model, format by format.

    python benchmarks/quantization.py runs/quickstart/pretrain
    python benchmarks/quantization.py runs/quickstart/pretrain --source ratings --bytes 200000 --group-size 32

The texts are the held-out split of a bundled source or of a file, as in pretraining.
"""

import argparse

from gptjax.data.corpora import read_documents
from gptjax.evaluation.perplexity import first_bytes
from gptjax.evaluation.quantized import quantization_table, quantization_text
from gptjax.models.quantization import WEIGHT_FORMATS, QuantizationConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.stages.handover import load_model


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the folder of a finished pretraining, fine-tuning or PPO run")
    parser.add_argument("--source", default="shakespeare", help="a bundled source, or text of one's own")
    parser.add_argument("--bytes", type=int, default=100_000, help="about how much of its held-out text")
    parser.add_argument("--group-size", type=int, default=32, help="inputs per scale in the rows with groups")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    options = parser.parse_args()
    model = load_model(options.run, make_mesh(MeshConfig()), "language")
    texts = first_bytes([d.text for d in read_documents(options.source, split="heldout")], options.bytes)
    group = options.group_size
    grouped = {
        f"int{bits}, groups of {group}": QuantizationConfig(
            bits=bits, group_size=group, scale_dtype="bfloat16"
        )
        for bits in (8, 4)
    }
    length = min(options.length, model.definition.config.context_length)
    print(quantization_text(quantization_table(model, texts, WEIGHT_FORMATS | grouped, length=length)))


if __name__ == "__main__":
    main()
