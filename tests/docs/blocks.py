"""The fenced blocks of README.md and docs/*.md: where each stands, how it is marked, and its command lines.

A block that the quick test should not run says so in the Markdown, on the line before its fence:

    <!-- test: slow -->                run in the slow test alone
    <!-- test: parse: synopsis -->     not run; that its commands, options and values exist is checked, as of all blocks
    <!-- test: skip: network -->       not even that

What is never run has a reason, one of `REASONS`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL, PYTHON = ("console", "bash", "sh", "shell"), ("python", "py")
NOT_RUN = ("", "text", "json", "yaml")
"""Languages of blocks that show files, formulas and output."""
MARKS = ("", "slow", "parse", "skip")
REASONS = ("network", "GPU or cluster", "hours of training", "synopsis")
_BLOCK = re.compile(
    r"(?:^ *<!-- test: (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Line:
    """A command line of a shell block.

    Attributes:
        words: as the shell would split it, comments left out.
        output: that the block shows below it.
    """

    words: tuple[str, ...]
    output: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        where: page and line, for messages.
        language: behind the fence.
        text: inside.
        mark: slow, parse, skip, or "" for a block that every run of the tests runs.
        reason: of parse and skip.
    """

    where: str
    language: str
    text: str
    mark: str
    reason: str

    def lines(self) -> list[Line]:
        """The command lines; where one begins with ``$``, all others are output."""
        texts = re.sub(r"\\\n", " ", self.text).splitlines()
        prompted = any(text.startswith("$ ") for text in texts)
        lines: list[tuple[str, list[str]]] = []
        for text in texts:
            if text.startswith("$ ") or (not prompted and text.strip() and not text.startswith("#")):
                lines.append((text.removeprefix("$ "), []))
            elif prompted and lines:
                lines[-1][1].append(text)
        return [Line(tuple(shlex.split(text, comments=True)), "\n".join(output).strip()) for text, output in lines]


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _BLOCK.finditer(text):
        mark, _, reason = (match["mark"] or "").partition(": ")
        number = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(f"{page.name}:{number}", match["language"].strip(), match["text"], mark, reason))
    return found


def faults(block: Block) -> list[str]:
    """What is wrong with the mark or the language of a block."""
    wrong = []
    if block.mark not in MARKS:
        wrong.append(f"{block.where}: expected a mark of {MARKS}, got {block.mark!r}")
    if block.mark in ("parse", "skip") and block.reason not in REASONS:
        wrong.append(f"{block.where}: expected a reason of {REASONS}, got {block.reason!r}")
    if block.mark in ("", "slow") and block.reason:
        wrong.append(f"{block.where}: a block that is run has no reason not to be, got {block.reason!r}")
    if block.language not in (*SHELL, *PYTHON, *NOT_RUN):
        wrong.append(f"{block.where}: unknown language {block.language!r}")
    return wrong
