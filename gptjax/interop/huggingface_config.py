"""What `config.json` of a Hugging Face folder says of its model."""

from pathlib import Path

from gptjax.data.quality import DataError
from gptjax.interop.names import MOST
from gptjax.interop.safetensors import read_json
from gptjax.models.encoder import EncoderConfig
from gptjax.models.rotary import RotaryScaling
from gptjax.models.transformer import DecoderConfig

# transformers' names of activations -> ours.
GELUS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}


class Settings:
    """`config.json`.

    Attributes:
        path: of the file.
        values: its content.
        notes: what there is to say about the model that is made of it.
    """

    def __init__(self, path: Path):
        self.path, self.values, self.notes = path, read_json(path), []

    def get(self, name: str, default=None):
        """A value; null counts as absent."""
        value = self.values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to MOST."""
        value = self.get(name, default)
        if type(value) is not int or not 1 <= value <= MOST:
            raise DataError(f"{self.path}: {name} is {value!r}, not a count")
        return value

    def must_be(self, name: str, *wanted) -> None:
        """Refuses another value, where there is one."""
        if self.get(name, wanted[0]) not in wanted:
            raise DataError(
                f"{self.path}: {name} is {self.get(name)!r}, but gptjax has only {wanted[0]!r} there"
            )

    def make(self, kind: type, **fields):
        """A configuration of the kind. Raises DataError for values that cannot be."""
        try:
            return kind(**fields)
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path} describes a model that cannot be: {error}") from error


def gpt1_config(settings: Settings) -> DecoderConfig:
    """GPT-1's. Its "gelu" is the tanh form, whatever that name means elsewhere."""
    settings.must_be("afn", "gelu")
    return settings.make(
        DecoderConfig,
        vocab_size=settings.count("vocab_size", 40_478),
        context_length=settings.count("n_positions", 512),
        width=settings.count("n_embd", 768),
        layers=settings.count("n_layer", 12),
        heads=settings.count("n_head", 12),
        norm_place="post",
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        tied=settings.get("tie_word_embeddings", True),
    )


def gpt2_config(settings: Settings) -> DecoderConfig:
    """GPT-2's."""
    settings.must_be("activation_function", "gelu_new", "gelu_pytorch_tanh")
    settings.must_be("scale_attn_weights", True)
    settings.must_be("scale_attn_by_inverse_layer_idx", False)
    settings.must_be("add_cross_attention", False)
    return settings.make(
        DecoderConfig,
        vocab_size=settings.count("vocab_size"),
        context_length=settings.count("n_positions", 1024),
        width=settings.count("n_embd"),
        layers=settings.count("n_layer"),
        heads=settings.count("n_head"),
        mlp_width=settings.count("n_inner") if settings.get("n_inner") is not None else None,
        norm_epsilon=settings.get("layer_norm_epsilon", 1e-5),
        tied=settings.get("tie_word_embeddings", True),
    )


def llama_config(settings: Settings) -> DecoderConfig:
    """LLaMA's and Mistral's."""
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    for name in ("attention_bias", "mlp_bias"):
        settings.must_be(name, False)
    settings.must_be("hidden_act", "silu")
    settings.must_be("head_dim", width // heads, None)
    theta, scaling = _rope(settings)
    return settings.make(
        DecoderConfig,
        vocab_size=settings.count("vocab_size"),
        context_length=_context(settings),
        width=width,
        layers=settings.count("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", heads),
        mlp_width=settings.count("intermediate_size"),
        norm="rmsnorm",
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rotary_theta=theta,
        rotary_scaling=scaling,
        activation="swiglu",
        bias=False,
        tied=settings.get("tie_word_embeddings", False),
    )


def bert_config(settings: Settings) -> EncoderConfig:
    """BERT's."""
    settings.must_be("position_embedding_type", "absolute")
    settings.must_be("is_decoder", False)
    settings.must_be("tie_word_embeddings", True)
    settings.must_be("hidden_act", *GELUS)
    return settings.make(
        EncoderConfig,
        vocab_size=settings.count("vocab_size"),
        context_length=settings.count("max_position_embeddings"),
        width=settings.count("hidden_size"),
        layers=settings.count("num_hidden_layers"),
        heads=settings.count("num_attention_heads"),
        mlp_width=settings.count("intermediate_size"),
        token_types=settings.count("type_vocab_size", 2),
        norm_epsilon=settings.get("layer_norm_eps", 1e-12),
        activation=GELUS[settings.get("hidden_act", "gelu")],
    )


def _rope(settings: Settings) -> tuple[float, RotaryScaling | None]:
    """Base of the wavelengths, and their scaling; transformers 5 keeps both in `rope_parameters`."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind not in ("default", "llama3"):
        raise DataError(
            f"{settings.path} scales rotary positions ({rope!r}) as gptjax does not: import a model "
            "without scaling, or with Llama 3's"
        )
    theta, scaling = rope.get("rope_theta", settings.get("rope_theta", 10_000.0)), None
    if kind == "llama3":
        scaling = settings.make(
            RotaryScaling,
            factor=rope.get("factor"),
            low_frequency_factor=rope.get("low_freq_factor"),
            high_frequency_factor=rope.get("high_freq_factor"),
            original_context=rope.get("original_max_position_embeddings"),
        )
    return theta, scaling


def _context(settings: Settings) -> int:
    """The context, cut to the sliding window, up to which the window hides nothing."""
    context = settings.count("max_position_embeddings", 2048)
    if not settings.get("use_sliding_window", True) or settings.get("sliding_window") is None:
        return context
    window = settings.count("sliding_window")
    if window < context:
        settings.notes.append(
            f"the context is cut from {context} tokens to the sliding window of {window}: gptjax has no such "
            "window, and up to there it hides nothing"
        )
    return min(window, context)
