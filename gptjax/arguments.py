"""Command lines whose mistakes are one sentence: the word, and what may stand in its place."""

import argparse
import re
from typing import NoReturn

TYPES = {"int": "an integer", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises `ConfigError` where that one prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, which says in other words what argparse says in `message`."""
        # Imported here, for `gptjax --help` has no time to import pydantic.
        from gptjax.config import ConfigError, nearest

        raise ConfigError(self._sentence(message, nearest))

    def _sentence(self, message: str, nearest) -> str:
        if found := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.+)\)", message):
            what, word, choices = found.groups()
            known = [choice.strip("'") for choice in choices.split(", ")]
            among = f" among {', '.join(known)}" if what.startswith("--") else ""
            close = nearest(word, known)
            return f"unknown {what.lower()} '{word}' of {self.prog}: the nearest{among} is '{close}'"
        if found := re.fullmatch(r"unrecognized arguments: (--[^ =]+).*", message):
            known = [option for action in self._actions for option in action.option_strings]
            return f"unknown option '{found[1]}' of {self.prog}: the nearest is '{nearest(found[1], known)}'"
        if found := re.fullmatch(r"argument (.+): invalid (int|float) value: '(.*)'", message):
            option, kind, word = found.groups()
            return f"option '{option}' of {self.prog} must be {TYPES[kind]}, but '{word}' was given"
        if found := re.fullmatch(r"argument (.+): expected (?:one|at least one) argument", message):
            return f"option '{found[1]}' of {self.prog} has no value: write {found[1]} VALUE"
        if found := re.fullmatch(r"the following arguments are required: (.+)", message):
            return f"{self.prog} needs {found[1]}: see {self.prog} --help"
        return f"{message}: see {self.prog} --help"


class CommandParser(Parser):
    """A parser that has to know every word of its command; a `Parser` may leave some to others."""

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, with nothing left over; an unknown option is found before one that is missing."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in args:
            name = word.partition("=")[0]
            # A value that begins like an option, such as those of sbatch, has to hold a space.
            if name.startswith("--") and " " not in word and not any(x.startswith(name) for x in known):
                self.error(f"unrecognized arguments: {word}")
        options, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return options, left
