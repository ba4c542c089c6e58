"""`dsv3 --version`, from the metadata of what is installed: nothing is imported for it."""

import typer

from dsv3_plugin.terminal.lines import say

_BUILT_ON = ("megatron-core", "torch", "transformers")


def print_versions(asked: bool) -> None:
    """Print the versions and end, if asked to."""
    if not asked:
        return
    say(f"dsv3_plugin {installed_version('dsv3_plugin')}")
    for name in _BUILT_ON:
        say(f"{name} {installed_version(name)}")
    raise typer.Exit


def installed_version(distribution: str) -> str:
    """The installed version of a distribution."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
