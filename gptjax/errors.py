"""The errors that a user can do something about."""

from importlib.util import find_spec

# Exit codes, from 64 on those of sysexits.h. RESUBMIT alone says: just run the same command again.
USAGE = 2  # the command line or the experiment file: nothing was started
CONFIG = 64  # a run that has begun finds that its settings cannot be used here
DATA = 65  # data or a stored file that cannot be used
WAITING = 66  # a run waits for a file by people: once it is there the same command goes on
INTERNAL = 70  # training cannot go on, or anything unforeseen
DISK = 74  # checkpoints cannot be written
RESUBMIT = 75  # a run was told to stop, or hung: the same command goes on from its last checkpoint

# Module -> what pip calls it, the extra of setup.cfg that brings it, and what needs it.
OPTIONAL = {
    "chatterbot_corpus": ("chatterbot-corpus", "data", "the source 'chatterbot'"),
    "gguf": ("gguf", "hub", "reading quantised GGUF files and writing any"),
    "matplotlib": ("matplotlib", "report", "the report"),
    "sacrebleu": ("sacrebleu", "data", "BLEU of the translation stage"),
    "sklearn": ("scikit-learn", "data", "the linear baseline of the reward stage"),
    "tokenizers": ("tokenizers", "hub", "a byte-level or WordPiece tokenizer"),
    "vaderSentiment": ("vaderSentiment", "data", "the lexicon score of the PPO stage"),
    "yaml": ("pyyaml", "data", "the source 'chatterbot'"),
}


class UserError(Exception):
    """An error whose message is a sentence for the user; the command line exits with its `exit_code`."""

    exit_code = 1


class MissingPackage(UserError):
    """An optional package is not installed."""

    exit_code = USAGE


def require(*modules: str) -> None:
    """Checks that optional packages, keys of OPTIONAL, are installed, without importing them.

    A stage calls it at its start for what it needs at its end.

    Raises MissingPackage, which says what needs the package and how to install it.
    """
    for module in modules:
        if find_spec(module) is None:
            package, extra, purpose = OPTIONAL[module]
            raise MissingPackage(f"{purpose} needs {package}: install it with pip install 'gptjax[{extra}]'")
