"""What a run of these tests says of itself first."""

from importlib.metadata import PackageNotFoundError, version


def pytest_report_header():
    """The releases of the peers that are found first."""
    found = []
    for name in ("torch", "transformers", "trl"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"parity: {', '.join(found)}"
