"""Write the tables of docs/architecture.md, between its markers, from docs/architecture.toml."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("architecture.md")
TABLE: dict[str, Any] = tomllib.loads(PAGE.with_suffix(".toml").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parts(kind: str) -> str:
    """Packages, or single files, and what each may import."""
    rows = []
    for name, part in TABLE[kind].items():
        where = f"{name}/" if kind == "packages" else "__init__.py" if name == "glocal" else f"{name}.py"
        imports = "every package" if name == "cli" else ", ".join(f"`{other}`" for other in part["imports"]) or "-"
        rows.append((f"`{where}`", part["about"], imports))
    return table((kind[:-1], "holds", "may import"), rows)


def image() -> str:
    """The path of one image."""
    rows = [(of["step"], of["about"], ", ".join(f"`{name}`" for name in of["functions"])) for of in TABLE["image"]]
    return table(("step", "the image there", "in `src/glocal/`"), rows)


def training() -> str:
    """The files down to ``backward``."""
    rows = [(f"`{of['file']}`", f"`{of['function']}`", of["about"]) for of in TABLE["training"]]
    return table(("file", "function", "does"), rows)


def filled(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {"packages": parts("packages"), "files": parts("files"), "image": image(), "training": training()}
    for name, text in tables.items():
        before, marker, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        if not marker or not end:
            raise ValueError(f"{PAGE}: expected <!-- {name} --> and <!-- end --> on lines of their own")
        page = f"{before}{marker}{text}\n{end}{after}"
    return page


def main() -> None:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
