"""Templates of HTML pages that make no requests."""

import base64
import hashlib

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Returns the environment of the templates in a package; values are escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def policy_hash(script: str) -> str:
    """Returns the hash by which a content security policy allows a script, without `sha256-`."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
