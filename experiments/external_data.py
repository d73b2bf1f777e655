"""Where experiments find the data that the package does not carry."""

import os
from pathlib import Path

from gptjax.config import ConfigError


def external(path: str) -> str:
    """The path of a file or folder of real data.

    It lies in the folder that the environment variable GPTJAX_DATA names, by default in `../shared/data`
    beside this checkout; README.md says where each file comes from.

    Raises:
        ConfigError: there is no such file.
    """
    checkout = Path(__file__).absolute().parent.parent
    folder = Path(os.environ.get("GPTJAX_DATA") or checkout.parent / "shared" / "data")
    found = folder / path
    if not found.exists():
        raise ConfigError(
            f"this experiment reads {found}, which is not there: experiments/README.md says where it comes "
            "from; set GPTJAX_DATA to the folder that holds it"
        )
    return str(found)
