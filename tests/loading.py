"""Modules that are no part of a package: configs and studies."""

import importlib.util


def load(path):
    """The module in a file, run anew."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
