"""Prints what setup.cfg asks for, one requirement a line: `requirements.py setup.cfg EXTRA ...`.

pip installs the dependencies of a package only together with the package; an image wants them in a
layer of their own, which a change of code does not touch.
"""

import configparser
import sys


def requirements(setup_cfg: str, extras: list[str]) -> list[str]:
    """Returns the requirements of the package and of the named extras, each once.

    Raises:
        KeyError: there is no such extra.
    """
    config = configparser.ConfigParser()
    with open(setup_cfg, encoding="utf-8") as file:
        config.read_file(file)
    lists = [config["options"]["install_requires"]]
    lists += [config["options.extras_require"][extra] for extra in extras]
    return list(dict.fromkeys(line for text in lists for line in text.splitlines() if line))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], sys.argv[2:])))
