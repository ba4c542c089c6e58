"""The pages of the documentation as these tests read them: text, links, code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"^`([^`\n]+)`[^`]*?:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_SHELL = ("", "sh", "bash", "console")
_DSV3 = re.compile(
    r"^(?:\w+=\S+ |torchrun .*?|srun .*?|python )?(?:dsv3|-m dsv3_plugin\.cli) +(.*)$"
)


@dataclass(frozen=True)
class Page:
    """One page in Markdown."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def adds_code(self) -> bool:
        """Whether it tells how to add code that is not there yet; a test of its own does so."""
        return self.path.name.startswith("adding-") and bool(self.blocks("python"))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        """Targets of its links within the project."""
        return [to for to in _LINK.findall(self.prose) if "://" not in to]

    @property
    def anchors(self) -> set[str]:
        """What a link may name behind its `#`, as GitHub makes it of the headings."""
        headings = (title.replace("`", "") for title in _HEADING.findall(self.prose))
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}

    @property
    def files(self) -> dict[str, str]:
        """The files that it shows: a paragraph that begins with a name, then the block of code."""
        return dict(_NAMED.findall(self.text))

    def blocks(self, *languages: str) -> list[str]:
        """Its blocks of code in some languages."""
        return [code for written_in, code in _FENCE.findall(self.text) if written_in in languages]

    @property
    def inline_code(self) -> list[str]:
        return re.findall(r"`([^`\n]+)`", self.prose)

    @property
    def shell_lines(self) -> list[str]:
        """Lines of its blocks of shell, continued ones joined, without comments."""
        blocks = (code for language, code in _FENCE.findall(self.text) if language in _SHELL)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        return [line.partition(" #")[0].strip() for line in lines]

    def commands(self) -> Iterator[list[str]]:
        """The arguments of every `dsv3` in its blocks of shell; of alternatives the first."""
        for line in self.shell_lines:
            if found := _DSV3.match(line):
                arguments = re.sub(r"[\[\]…]", "", found[1])
                yield shlex.split(re.sub(r"(?<=\w)\|[\w|-]+", "", arguments))


PAGES = [Page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
